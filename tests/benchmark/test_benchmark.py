# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The benchmark measures what it says: its turns, its keys, its ratios."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from d2kd.benchmark import command, memory
from d2kd.benchmark.networks import build_networks, read_config, synthetic_batches
from d2kd.benchmark.options import as_arguments, parse_args
from d2kd.benchmark.summary import format_table, summarise
from d2kd.benchmark.tasks import build_tasks
from d2kd.utils.timing import Sample, interleave
from tests.common import ROOT

CONFIG = "configs/shapes/TAR/faster_rcnn_R_50_eighth_from_R_50_three_eighths_800.yaml"
KEYS = ("student_step_s", "teacher_needed_s", "teacher_full_s", "distilled_step_s")


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
    found = summarise(_times(), ["feature", "cls"])
    assert [found[key] for key in KEYS] == [3.0, 1.0, 1.5, 4.4]
    assert found["overhead_ratio"] == found["overhead_ratio_beyond_adapters"] == 1.1
    # Rounds of 3.3 / 3, 5.5 / 5, 4.4 / 4: a machine that slows down changes none of them.
    assert found["overhead_ratio_iqr"] == 0
    assert found["losses"] == {"feature": 0.2, "cls": 0.1}
    assert found["each_loss_alone"] == {
        "feature": {"distilled_step_s": 3.5, "teacher_needed_s": 0.5, "overhead_ratio": 1.0}
    }


def test_adapters_belong_to_the_lower_bound_in_the_second_ratio_alone():
    found = summarise(_times(adapters=(0.4, 0.4, 0.4)), ["feature", "cls"])
    assert (found["overhead_ratio"], found["overhead_ratio_beyond_adapters"]) == (1.1, 1.0)
    text = format_table({**found, "random_weights": ["teacher"]})
    for part in (
        "overhead ratio 1.100",
        "bound 1.000",
        "of the lower bound",
        "random weights: teacher",
        "feature alone",
    ):
        assert part in text


def test_options_reach_the_processes_that_measure_memory():
    given = ["--config-file", "a.yaml", "--output", "o.json", "--size", "64", "96", "--batch", "2"]
    given += ["--boxes", "7", "--data", "--random-weights", "--threads", "1", "SEED", "3"]
    threads = torch.get_num_threads()
    first = parse_args("", given)
    second = parse_args("", as_arguments(first))
    torch.set_num_threads(threads)
    # Only the first process writes the results.
    assert vars(first) == {**vars(second), "output": Path("o.json")}
    assert second.opts == ["SEED", "3"] and second.output is None


@pytest.mark.parametrize(
    "wrong", [["--steps", "1"], ["--size", "0", "9"], ["--batch", "0"], ["--warmup", "-1"]]
)
def test_options_out_of_range_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        parse_args("", ["--config-file", "a", *wrong])
    assert "set --steps to 2 or more" in capsys.readouterr().err


def test_memory_ratio(monkeypatch):
    peaks = {"student": 30.0, "teacher": 10.0, "distilled": 44.0}

    def run(command, **_):
        part = command[3].split(",")[0]
        assert command[3] == f"{part},features,logits"
        return type("Done", (), {"returncode": 0, "stdout": f"a log\n{peaks[part]}\n"})

    monkeypatch.setattr(memory.subprocess, "run", run)
    args = parse_args("", ["--config-file", "a.yaml"])
    found = memory.measure_peaks(args, frozenset({"logits", "features"}))
    assert found == {"peak_memory_ratio": 1.1, "peak_memory_mib": peaks}


def test_memory_is_kept_on_demand(tmp_path):
    path = tmp_path / "o.json"
    assert command.known_peaks(path) == {}
    path.write_text(json.dumps({"peak_memory_ratio": 1.0, "peak_memory_mib": {}, "steps": 3}))
    assert command.known_peaks(path) == {"peak_memory_ratio": 1.0, "peak_memory_mib": {}}


def test_of_the_teacher_only_what_is_read_is_timed(monkeypatch):
    monkeypatch.chdir(ROOT)
    pair = build_networks(read_config(CONFIG, ["MODEL.DEVICE", "cpu"]), random_weights=True)
    tasks = build_tasks(pair, synthetic_batches(pair.cfg, (64, 64), images=1, boxes=4))
    teacher, seen = pair.teacher.model, Counter()
    parts = ["backbone", "proposal_generator", "roi_heads.box_head"]
    for part in parts:
        count = lambda *_, part=part: seen.update([part])  # noqa: E731
        teacher.get_submodule(part).register_forward_hook(count)
    for task, run in (
        ("teacher_full", parts),
        ("needed all", ["backbone", "roi_heads.box_head"]),
        ("needed feature", ["backbone"]),
    ):
        seen.clear()
        tasks[task](0)
        assert seen == Counter(run), task


def test_memory_can_only_be_kept_from_a_file(capsys):
    with pytest.raises(SystemExit):
        parse_args("", ["--config-file", "a", "--keep-memory"])
    assert "--keep-memory reads the file of --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "opts, words",
    [
        (["DISTILL.ENABLED", "False"], "set DISTILL.ENABLED to True"),
        (["MODEL.DEVIZE", "cpu"], "Did you mean 'MODEL.DEVICE'?"),
    ],
)
def test_a_user_error_ends_the_benchmark_with_its_message(monkeypatch, capsys, opts, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        command.main(["--config-file", CONFIG, *opts])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and words in printed and "Traceback" not in printed


def test_without_a_gpu_the_cpu_is_used_and_that_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(ROOT)
    assert read_config(CONFIG, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cpu"
    sentence = "MODEL.DEVICE is cuda and there is no GPU: this runs on the CPU\n"
    assert capsys.readouterr().out == sentence
    read_config(CONFIG, ["MODEL.DEVICE", "cpu"])
    assert capsys.readouterr().out == ""


def test_a_run(measured):
    found = json.loads(measured.read_text())
    assert all(found[key] > 0 for key in KEYS)
    # No bounds on times: of two steps on a busy machine they say nothing.
    bound = found["student_step_s"] + found["teacher_needed_s"]
    assert found["overhead_ratio"] == pytest.approx(found["distilled_step_s"] / bound, abs=1e-4)
    assert 0.3 < found["peak_memory_ratio"] < 2
    assert list(found["losses"]) == list(found["each_loss_alone"]) == ["feature", "cls", "reg"]
    assert all(seconds > 0 for seconds in found["losses"].values())
    assert found["random_weights"] == ["student", "teacher"] and found["threads"] == 1
    assert set(found["versions"]) >= {"torch", "detectron2", "d2kd"}
    assert (found["batch"], found["boxes_per_image"], found["device"]) == ([1, 64, 64], 4, "cpu")
