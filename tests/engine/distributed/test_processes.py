# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Several processes train as one does: gradients, checkpoints, signals, torchrun."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase, default_argument_parser
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

import train_net
from d2kd.config.load import load_config
from d2kd.engine import DistillTrainer
from d2kd.engine.distributed.launch import add_launch_options, launch
from d2kd.engine.distributed.process_group import Group, data_parallel, join_group
from d2kd.engine.distributed.worker_processes import run_children
from d2kd.engine.interrupt import interruptible
from d2kd.engine.nonfinite import read_replay
from tests.common import ROOT
from tests.common.detectors import FRS, detector_cfg, write_teachers
from tests.common.helpers import (
    TRAIN_SET,
    build_distiller,
    distill_cfg,
    make_batch,
    register_train_set,
    run,
    write_coco_set,
    write_teacher,
)
from tests.common.many import fast_start, free_address, options

# Of four images, the third without ground truth: alone on its process where there are four.
BOXES = (
    [[8, 12, 50, 60], [4, 4, 20, 30]],
    [[30, 20, 60, 44]],
    [],
    [[2, 8, 40, 62], [20, 2, 60, 30]],
)
# Their own losses have normalisers that many processes share.
SHARED = ("GeneralizedRCNN", "GFL")
CASES = {
    "TAR": ("GeneralizedRCNN", {}),
    "FRS": ("GeneralizedRCNN", FRS),
    "RetinaNet": (
        "RetinaNet",
        {"DISTILL.DISTANCES.SSIM.WINDOW": 5, "DISTILL.FEATURE.DISTANCE": "ssim"},
    ),
    "FCOS": ("FCOS", {**FRS, "DISTILL.FEATURE.DISTANCE": "channel_kl"}),
    "LD": ("GFL", {"DISTILL.REG.DISTANCE": "distribution_kl"}),
}


def _cfg(files, case, reduce):
    detector, keys = CASES[case]
    # All regions count.
    keys = {**keys, "DISTILL.REG.GATE": "none", "DISTILL.REDUCE_NORMALIZERS": reduce}
    return detector_cfg(files, detector, keys)


def _gradients(files, case, reduce, batch):
    """Gradients of the distillation losses and of those detection losses that can be equal."""
    distiller = build_distiller(_cfg(files, case, reduce))
    if hasattr(distiller.student, "head"):
        # GFL's own normaliser is at least 1 in each process, and untrained scores sum to less.
        torch.nn.init.zeros_(distiller.student.head.cls_score.bias)
    model = data_parallel(distiller)
    losses = run(model, batch)
    own = CASES[case][0] in SHARED
    sum(v if own or "distill" in k else 0 * v for k, v in losses.items()).backward()
    return {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad}


def _all_gradients(files, batch):
    # Detectron2 samples at random, here the first of each image.
    torch.randperm = lambda n, **kwargs: torch.arange(n, **kwargs)
    try:
        found = {case: _gradients(files, case, True, batch) for case in CASES}
        return {**found, "not reduced": _gradients(files, "TAR", False, batch)}
    finally:
        torch.randperm = RANDPERM


RANDPERM = torch.randperm


def _batch():
    batch = make_batch(BOXES)
    for sample in batch:  # all of one size: padding would be another for a joined batch
        sample["image"] = sample["image"][:, :64, :64].clone()
        sample["instances"]._image_size = (64, 64)
    return batch


def _compute_share(rank, group, files, folder):
    torch.set_num_threads(1)
    join_group(group, rank)
    share = len(BOXES) // group.size
    found = _all_gradients(files, _batch()[rank * share : (rank + 1) * share])
    if comm.is_main_process():
        torch.save(found, folder / f"of{group.size}.pth")
    comm.synchronize()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """By number of processes and case."""
    folder = tmp_path_factory.mktemp("gradients")
    files = write_teachers(folder)
    found = {1: _all_gradients(files, _batch())}
    with pytest.MonkeyPatch.context() as monkeypatch:
        fast_start(monkeypatch)
        for count in (2, 4):
            group = Group("cpu", count, address=free_address())
            calls = {f"rank {i}": (i, group, files, folder) for i in range(count)}
            run_children(_compute_share, calls)
            found[count] = torch.load(folder / f"of{count}.pth")
    return found


def _difference(ours, theirs):
    """The largest relative difference; some gradients are mere rounding, as SSIM's of a bias."""
    assert list(ours) == list(theirs)
    least = 1e-5 * max(gradient.norm() for gradient in theirs.values())
    return max(
        ((ours[k] - theirs[k]).norm() / theirs[k].norm().clamp(min=least)).item() for k in ours
    )


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_joined_batch(gradients, count, case):
    assert _difference(gradients[count][case], gradients[1][case]) < 5e-4


def test_without_reducing_a_batch_with_few_boxes_counts_as_much_as_one_with_many(gradients):
    for count in (2, 4):
        assert _difference(gradients[count]["not reduced"], gradients[1]["TAR"]) > 0.1
    assert _difference(gradients[1]["not reduced"], gradients[1]["TAR"]) == 0


class _Press(HookBase):
    """A signal in one process alone, in the middle of an iteration."""

    def __init__(self, number=signal.SIGINT):
        self.number = number

    def before_step(self):
        if comm.get_rank() == 1 and self.trainer.iter == 1:
            os.kill(os.getpid(), self.number)


class _Break(HookBase):
    """A loss that is not finite in one process alone."""

    def before_step(self):
        if comm.get_rank() == 1 and self.trainer.iter == 1:
            adapters = self.trainer.model.module.distill_losses["feature"].adapters
            torch.nn.init.constant_(adapters["p3"].weight, torch.inf)


def _train(folder, files, opts, hook):
    register_train_set(folder)
    seed_all_rng(1 + comm.get_rank())
    evaluated = folder / f"evaluated{comm.get_rank()}"
    DistillTrainer.test = lambda *_: evaluated.touch()
    with interruptible():
        trainer = DistillTrainer(distill_cfg(files, "OUTPUT_DIR", str(folder / "out"), *opts))
        trainer.resume_or_load(resume=False)
        trainer.register_hooks([hook])
        save = trainer.checkpointer.save
        # The other process must not leave meanwhile: that would end this one.
        if comm.is_main_process():
            trainer.checkpointer.save = lambda *a, **kw: (time.sleep(1.5), save(*a, **kw))
        try:
            trainer.train()
        finally:
            state = {"iter": trainer.iter, "model": trainer.checkpointer.model.state_dict()}
            torch.save(state, folder / f"rank{comm.get_rank()}.pth")


@pytest.fixture
def no_train_set():
    """Some other test's may be registered."""
    before = DatasetCatalog.pop(TRAIN_SET, None)
    yield
    DatasetCatalog.pop(TRAIN_SET, None)
    if before:
        DatasetCatalog.register(TRAIN_SET, before)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_one_ends_all_at_one_step_and_one_checkpoint_resumes_in_one_process(
    monkeypatch, tmp_path, teacher_files, no_train_set, number, status
):
    fast_start(monkeypatch)
    monkeypatch.setattr("d2kd.engine.distributed.worker_processes.GRACE", 0.7)
    monkeypatch.setattr("d2kd.engine.distributed.worker_processes.SAVING", 0.7)
    opts = ["SOLVER.MAX_ITER", 6]
    arguments = (tmp_path, teacher_files, opts, _Press(number))
    with pytest.raises(SystemExit) as ended:
        launch(_train, options(num_processes=2), distill_cfg(teacher_files), arguments)
    assert ended.value.code == status
    first, second = (torch.load(tmp_path / f"rank{i}.pth") for i in (0, 1))
    # Asked after step 1, answered after step 2.
    assert first["iter"] == second["iter"] == 2
    found = sorted(path.name for path in (tmp_path / "out").glob("*.pth"))
    assert found == ["model_0000002.pth"]
    saved = torch.load(tmp_path / "out" / found[0])
    for name, value in saved["model"].items():
        assert torch.equal(value, first["model"][name]), name
    assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items() if _moves(k))

    register_train_set(tmp_path)
    one = DistillTrainer(distill_cfg(teacher_files, "OUTPUT_DIR", str(tmp_path / "out"), *opts))
    one.resume_or_load(resume=True)
    assert one.start_iter == 3
    one.train()
    assert (tmp_path / "out" / "model_final.pth").exists()


def test_sigusr1_to_one_writes_a_checkpoint_and_all_go_on(
    monkeypatch, tmp_path, teacher_files, no_train_set
):
    fast_start(monkeypatch)
    arguments = (tmp_path, teacher_files, ["SOLVER.MAX_ITER", 5], _Press(signal.SIGUSR1))
    launch(_train, options(num_processes=2), distill_cfg(teacher_files), arguments)
    found = sorted(path.name for path in (tmp_path / "out").glob("*.pth"))
    # Asked after step 1, answered after step 2.
    assert found == ["model_0000002.pth", "model_final.pth"]
    processes = torch.load(tmp_path / "out" / found[0])["run_state"]["processes"]
    assert len(processes) == 2, "the state of both"


def test_ctrl_c_in_the_last_step_of_one_keeps_all_from_evaluating(
    monkeypatch, tmp_path, teacher_files, no_train_set
):
    fast_start(monkeypatch)
    args = (tmp_path, teacher_files, ["SOLVER.MAX_ITER", 2], _Press())
    with pytest.raises(SystemExit) as ended:
        launch(_train, options(num_processes=2), distill_cfg(teacher_files), args)
    assert ended.value.code == 130
    assert not list(tmp_path.glob("evaluated*"))
    assert [torch.load(tmp_path / f"rank{i}.pth")["iter"] for i in (0, 1)] == [2, 2]
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"


def test_a_loss_that_is_not_finite_in_one_process_is_explained_by_it(
    monkeypatch, tmp_path, teacher_files, no_train_set
):
    fast_start(monkeypatch)
    args = (tmp_path, teacher_files, [], _Break())
    with pytest.raises(SystemExit) as ended:
        launch(_train, options(num_processes=2), distill_cfg(teacher_files), args)
    assert ended.value.code == 2
    (replay,) = (tmp_path / "out").glob("nonfinite_*_rank1.pth")
    losses = read_replay(str(replay))["losses"]
    assert not math.isfinite(losses["loss_distill_feature"]) and math.isfinite(losses["loss_cls"])


def _moves(name):
    """BatchNorm's statistics are each process's own; the main one's are saved."""
    return "running_" not in name and "num_batches" not in name


def test_torchrun_trains_as_our_own_launch(monkeypatch, tmp_path):
    files = write_teacher(tmp_path / "teacher")
    (tmp_path / "pictures").mkdir()
    cfg = distill_cfg(files)
    cfg.DATASETS.CUSTOM = CfgNode({"tiny": write_coco_set(tmp_path / "pictures")})
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tiny",)
    (tmp_path / "student.yaml").write_text(cfg.dump())
    config = ["--config-file", str(tmp_path / "student.yaml"), "OUTPUT_DIR"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "train_net.py", *config, str(tmp_path / "a")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    fast_start(monkeypatch)
    parser = default_argument_parser()
    add_launch_options(parser)
    args = parser.parse_args(["--num-processes", "2", *config, str(tmp_path / "b")])
    args.eval_teacher, args.modules = False, []
    launch(train_net.main, args, load_config(args.config_file, args.opts), (args,))
    a, b = (torch.load(tmp_path / name / "model_final.pth")["model"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = (tmp_path / "a" / "metrics.json").read_text()
    assert rows.count('"bbox/AP"') == rows.count('"loss_distill_reg"') == 1
