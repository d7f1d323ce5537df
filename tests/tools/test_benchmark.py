"""The benchmark measures what it says: its turns, its keys, its ratios, and the tables made of them."""

import json
import sys

import bench_memory
import benchmark
import pytest
import torch
from bench_compare import loop_masks, mask_inputs
from bench_data import data_share
from bench_growth import SWEEPS, draw, options, wanted
from bench_options import as_arguments, parse_args
from bench_report import ROOT, exponent, main, tables
from bench_time import Sample, interleave

from d2kd.losses import gaussian

KEYS = ("student_step_s", "teacher_needed_s", "teacher_full_s", "distilled_step_s")
CONFIG = str(ROOT / "configs/shapes/TAR/faster_rcnn_thin_from_wide_800.yaml")


def _times(**changes):
    seconds = {
        "student": (2.0, 4.0, 3.0),
        "needed all": (1.0, 1.0, 1.0),
        "needed feature": (0.5, 0.5, 0.5),
        "teacher_full": (1.5, 1.5, 1.5),
        "distilled all": (3.3, 5.5, 4.4),
        "distilled feature": (3.5, 3.5, 4.2),
        "loss feature": (0.2, 0.2, 0.2),
        "loss cls": (0.1, 0.1, 0.1),
    }
    return {name: Sample(values) for name, values in {**seconds, **changes}.items()}


def test_every_task_runs_each_round_in_changing_order():
    seen, warmup, steps = [], 2, 30
    tasks = {name: lambda turn, name=name: seen.append((turn, name)) for name in "abc"}
    times = interleave(tasks, steps, warmup)
    rounds = [seen[i : i + 3] for i in range(0, len(seen), 3)]
    assert [{turn for turn, _ in x} for x in rounds] == [{i} for i in range(warmup + steps)]
    orders = {"".join(name for _, name in x) for x in rounds}
    assert all(sorted(x) == ["a", "b", "c"] for x in orders) and len(orders) == 6
    assert all(len(sample.values) == steps for sample in times.values())


def test_tasks_of_a_round_draw_the_same_random_numbers():
    drawn = {"a": [], "b": []}
    interleave({n: lambda _, n=n: drawn[n].append(float(torch.rand(()))) for n in drawn}, 3)
    assert drawn["a"] == drawn["b"] and len(set(drawn["a"])) == 6


def test_sample():
    sample = Sample((1.0, 2.0, 3.0, 4.0, 100.0))
    assert (sample.median, sample.iqr) == (3.0, 2.0)


def test_summary():
    found = benchmark.summarise(_times(), ["feature", "cls"])
    assert [found[key] for key in KEYS] == [3.0, 1.0, 1.5, 4.4]
    assert found["overhead_ratio"] == found["overhead_ratio_beyond_adapters"] == 1.1
    # Rounds of 3.3 / 3, 5.5 / 5, 4.4 / 4: a machine that slows down changes none of them.
    assert found["overhead_ratio_iqr"] == 0
    assert found["losses"] == {"feature": 0.2, "cls": 0.1}
    assert found["each_loss_alone"] == {
        "feature": {"distilled_step_s": 3.5, "teacher_needed_s": 0.5, "overhead_ratio": 1.0}
    }


def test_adapters_count_as_floor_in_the_second_ratio_alone():
    found = benchmark.summarise(_times(adapters=(0.4, 0.4, 0.4)), ["feature", "cls"])
    assert (found["overhead_ratio"], found["overhead_ratio_beyond_adapters"]) == (1.1, 1.0)
    text = benchmark.table({**found, "random_weights": ["teacher"]})
    for part in ("overhead ratio 1.100", "floor 1.000", "random weights: teacher", "feature alone"):
        assert part in text


def test_options_reach_the_processes_that_measure_memory():
    given = ["--config-file", "a.yaml", "--json", "o.json", "--size", "64", "96", "--batch", "2"]
    given += ["--boxes", "7", "--data", "--random-weights", "--threads", "1", "SEED", "3"]
    threads = torch.get_num_threads()
    first = parse_args("", given)
    second = parse_args("", as_arguments(first))
    torch.set_num_threads(threads)
    assert vars(first) == vars(second) and second.opts == ["SEED", "3"]


@pytest.mark.parametrize("wrong", [["--steps", "1"], ["--size", "0", "9"], ["--batch", "0"]])
def test_options_out_of_range_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        parse_args("", ["--config-file", "a", "--json", "b", *wrong])
    assert "--steps must be 2 or more" in capsys.readouterr().err


def test_memory_ratio(monkeypatch):
    peaks = {"student": 30.0, "teacher": 10.0, "distilled": 44.0}

    def run(command, **_):
        part = command[2].split(",")[0]
        assert command[2] == f"{part},features,logits"
        return type("Done", (), {"returncode": 0, "stdout": f"a log\n{peaks[part]}\n"})

    monkeypatch.setattr(bench_memory.subprocess, "run", run)
    args = parse_args("", ["--config-file", "a.yaml", "--json", "o.json"])
    found = bench_memory.measure_peaks(args, frozenset({"logits", "features"}))
    assert found == {"peak_memory_ratio": 1.1, "peak_memory_mib": peaks}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The JSON of a real, tiny run with memory."""
    path = tmp_path_factory.mktemp("benchmark") / "shapes" / "a.json"
    options = ["--size", "64", "64", "--batch", "1", "--steps", "2", "--warmup", "1"]
    argv = ["benchmark.py", "--config-file", CONFIG, "--json", str(path), "--random-weights"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [*argv, *options, "--threads", "1", "MODEL.DEVICE", "cpu"])
        benchmark.main()
    return path


def test_a_run(measured):
    found = json.loads(measured.read_text())
    assert all(found[key] > 0 for key in KEYS)
    assert found["teacher_full_s"] > found["teacher_needed_s"]
    assert 0.3 < found["overhead_ratio"] < 3 and 0.3 < found["peak_memory_ratio"] < 2
    assert list(found["losses"]) == list(found["each_loss_alone"]) == ["feature", "cls", "reg"]
    assert all(0 < seconds < found["distilled_step_s"] for seconds in found["losses"].values())
    assert found["random_weights"] == ["student", "teacher"] and found["threads"] == 1
    assert set(found["versions"]) >= {"torch", "detectron2", "d2kd"}
    assert (found["batch"], found["boxes_per_image"], found["device"]) == ([1, 64, 64], 4, "cpu")


def test_growth_changes_one_quantity_at_a_time(tmp_path):
    base = {"--size": "320 320", "--batch": "2", "--boxes": "4"}
    changed = set()
    for sweep, value, _ in wanted():
        if sweep.name == "processes":
            continue
        flags, keys = options(sweep.name, value, tmp_path)
        text = " ".join(flags).replace("--", "\n--").split("\n")[1:]
        found = dict(x.strip().split(" ", 1) for x in text)
        assert set(found) == set(base)
        different = {name for name in base if found[name] != base[name]}
        assert len(different) <= (2 if "side" in sweep.name else 1)
        changed.update(different)
        assert bool(keys) == (sweep.name == "FPN channels")
    assert changed == set(base)
    assert (tmp_path / "teacher_256.yaml").is_file()


POINT = {"teacher_needed_s": 1.0, "overhead_ratio": 1.02, "peak_memory_mib": 10.0}


def _growth(power):
    return [
        {
            "sweep": sweep.name,
            "value": value,
            "method": method,
            "student_step_s": 1.0,
            "distilled_step_s": float(value) ** power,
            **POINT,
        }
        for sweep, value, method in wanted()
    ]


def test_plot_of_growth(tmp_path):
    draw(_growth(1.0), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10000


def test_exponent():
    assert exponent([1, 2, 4], [3.0, 5.0, 48.0]) == pytest.approx(2)


@pytest.mark.parametrize("boxes", [1, 20])
def test_the_loop_over_boxes_makes_the_same_masks(boxes):
    for inputs in mask_inputs(boxes, "cpu")[1:]:
        torch.testing.assert_close(loop_masks(inputs), gaussian(inputs))


def test_share_of_the_data(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [{"time": 9.0, "data_time": 9.0}, *({"time": 0.2, "data_time": x} for x in (0.01, 0.03))]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"bbox/AP": 1.0}]))
    assert data_share(path) == {"seconds": 0.2, "waiting_s": 0.02, "share": 0.1}
    path.write_text(json.dumps({"bbox/AP": 1.0}))
    with pytest.raises(ValueError, match="times no iteration"):
        data_share(path)


@pytest.fixture
def results(tmp_path, measured):
    """A folder with results of every kind."""
    machine = json.loads(measured.read_text())
    (tmp_path / "shapes").mkdir()
    for name, ratio in {"fcos_a": 1.04, "gfl_a": 1.06}.items():
        machine.update(config=f"configs/shapes/FRS/{name}.yaml", overhead_ratio=ratio)
        (tmp_path / "shapes" / f"{name}.json").write_text(json.dumps(machine))
    samples = {"d2kd": 1.0, "kornia": 2.5}
    masks = {"d2kd, 1 boxes": 1.0, "loop, 1 boxes": 3.0, "d2kd, 9 boxes": 2.0, "loop, 9 boxes": 8.0}
    groups = {
        group: {name: {"seconds": s, "iqr": 0.1} for name, s in found.items()}
        for group, found in {"ssim": samples, "masks": masks}.items()
    }
    row = {"set": "BCCD", "distilled": True, "workers": 1, "seconds": 0.5, "waiting_s": 0.01}
    files = {
        "compare": groups,
        "growth": {"points": _growth(1.5)},
        "data": {"rows": [{**row, "share": 0.02}]},
    }
    for name, found in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**machine, **found}))
    return tmp_path


def test_tables(results):
    found = tables(results)
    assert list(found) == ["shapes", "shapes losses", "ssim", "masks", "growth", "data"]
    # In the order of the detectors, and bold where the goal is missed.
    lines = found["shapes"].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["fcos", "gfl"]
    assert "1.040" in lines[2] and "**1.040**" not in lines[2] and "**1.060**" in lines[3]
    assert " cores, 1 thread; python 3" in found["shapes"]
    assert found["shapes losses"].count("| cls ") == 2
    ratios = [x.split("|")[-2].strip() for x in found["masks"].splitlines() if " boxes" in x]
    assert ratios == ["1.00", "3.00", "1.00", "4.00"]
    assert "boxes in an image to the power of: TAR 1.50" in found["growth"]
    assert "pixels to the power of: TAR 0.75" in found["growth"]
    assert all(f"| {sweep.name} " in found["growth"] for sweep in SWEEPS)
    assert "2.0 %" in found["data"]


def test_the_page_is_rewritten_between_its_marks(results, monkeypatch):
    page = results / "page.md"
    page.write_text("a\n<!-- benchmark data -->\nold\n<!-- end -->\nb\n<!-- benchmark coco -->\n")
    command = ["bench_report.py", "--folder", str(results), "--page", str(page)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", command)
        main()
    text = page.read_text()
    assert text.startswith("a\n<!-- benchmark data -->\n\n| set")
    assert "old" not in text and text.count("BCCD") == 1
    assert text.endswith("<!-- end -->\nb\n<!-- benchmark coco -->\n")
