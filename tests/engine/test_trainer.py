# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""DistillTrainer beside Detectron2's own: the same training, checkpoints that stock code loads."""

import ast
import json
import subprocess
import sys

import pytest
import torch
from detectron2.engine import DefaultTrainer, SimpleTrainer
from detectron2.engine.hooks import PeriodicWriter
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from d2kd.config.student import student_config
from d2kd.engine import DistillLossHook, DistillTrainer, LossRatioHook, build_distill_hooks
from d2kd.engine.stop_on_signal import StopOnSignal
from d2kd.utils.errors import ConfigError, WeightsError
from tests.common import ROOT
from tests.common.helpers import build_distiller, count_calls, distill_cfg, make_batch, plain_cfg

pytestmark = pytest.mark.usefixtures("train_set")

LOAD_IN_STOCK = """
import sys, torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
torch.set_num_threads(1)
cfg = get_cfg()
cfg.merge_from_file(sys.argv[1] + "/student.yaml")
model = build_model(cfg)
assert type(model).__name__ == "GeneralizedRCNN"
assert type(model.roi_heads).__name__ == "StandardROIHeads"
model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"], strict=True)
model.eval()([{"image": torch.zeros(3, 64, 64)}])
assert not any(name.split(".")[0] == "d2kd" for name in sys.modules)
"""


def _start(trainer_class, cfg, seed=1):
    """A trainer as train_net.py makes it, with a record of the files of every batch."""
    seed_all_rng(seed)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=False)
    trainer.seen = []
    trainer.model.register_forward_pre_hook(
        lambda _, inputs: trainer.seen.append(
            [(x["file_name"], x["image"].sum().item()) for x in inputs[0]]
        )
    )
    return trainer


def _student_state(trainer):
    model = getattr(trainer.model, "student", trainer.model)
    return {k: v.clone() for k, v in model.state_dict().items()}


def _equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_without_distillation_it_is_the_stock_trainer(tmp_path, workers):
    states, losses = [], []
    for name, trainer_class in (("stock", DefaultTrainer), ("ours", DistillTrainer)):
        opts = ["OUTPUT_DIR", str(tmp_path / name), "INPUT.MIN_SIZE_TRAIN", (48, 56, 64)]
        cfg = plain_cfg(*opts, "DATALOADER.NUM_WORKERS", workers)
        (tmp_path / name).mkdir()
        trainer = _start(trainer_class, cfg if name == "ours" else student_config(cfg))
        trainer.train()
        states.append(_student_state(trainer))
        rows = _metrics(tmp_path / name)
        losses.append([{k: v for k, v in row.items() if "loss" in k} for row in rows])
    assert _equal(*states) and losses[0] == losses[1] and "total_loss" in losses[0][0]


@pytest.mark.parametrize(
    "inherit", [[], ["backbone.bottom_up.stem", "roi_heads.box_head.fc1.bias"]]
)
def test_a_distilled_run_and_its_baseline_start_alike_and_see_the_same(
    teacher_files, tmp_path, inherit
):
    starts, seen = [], []
    for name, enabled in (("baseline", False), ("distilled", True)):
        opts = ["OUTPUT_DIR", str(tmp_path / name), "DISTILL.ENABLED", enabled]
        trainer = _start(
            DistillTrainer, distill_cfg(teacher_files, *opts, "DISTILL.STUDENT.INHERIT", inherit)
        )
        starts.append(_student_state(trainer))
        trainer.train()
        seen.append(trainer.seen)
        assert not _equal(starts[-1], _student_state(trainer))
    assert _equal(*starts)
    assert seen[0] == seen[1] and len(seen[0]) == 3
    if inherit:
        stem = "backbone.bottom_up.stem.conv1.weight"
        assert torch.equal(starts[0][stem], torch.load(teacher_files[1])["model"][stem])


@pytest.fixture(scope="module")
def trained(teacher_files, tmp_path_factory):
    """A trainer after its three distilled iterations."""
    folder = tmp_path_factory.mktemp("trained")
    opts = ["DISTILL.REG.GATE", "none", "OUTPUT_DIR", str(folder)]
    trainer = _start(DistillTrainer, distill_cfg(teacher_files, *opts))
    trainer.train()
    return trainer, folder


def test_the_checkpoint_is_the_student_alone(trained):
    trainer, folder = trained
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    assert _equal(checkpoint["model"], _student_state(trainer))
    assert list(checkpoint["model"]) == list(build_model(plain_cfg()).state_dict())
    assert _equal(checkpoint["distill_losses"], trainer.model.distill_losses.state_dict())
    assert "feature.adapters.p2.weight" in checkpoint["distill_losses"]


def test_stock_code_loads_the_checkpoint_by_student_yaml(trained):
    _, folder = trained
    assert "DISTILL" not in (folder / "student.yaml").read_text()
    subprocess.run([sys.executable, "-c", LOAD_IN_STOCK, str(folder)], check=True, cwd=folder)


def test_student_yaml_finds_the_weights_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DistillTrainer(plain_cfg("OUTPUT_DIR", "out"))
    cfg = plain_cfg()
    cfg.merge_from_file("out/student.yaml")
    assert cfg.MODEL.WEIGHTS == str(tmp_path / "out" / "model_final.pth")


def test_weights_and_ratios_are_logged_in_the_step_they_belong_to(trained):
    _, folder = trained
    (row,) = _metrics(folder)
    detection = sum(row[k] for k in ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"))
    for name in ("feature", "cls", "reg"):
        assert row[f"loss_weight/{name}"] == pytest.approx(1 - 2 / 3)
        assert row[f"loss_distill_{name}"] > 0 and row[f"loss_ratio/{name}"] > 0
    # The writer smooths losses over its window, a ratio is of its own iteration.
    latest = {k: v for k, (v, _) in trained[0].storage.latest().items()}
    detection = sum(latest[k] for k in ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"))
    expected = latest["loss_distill_cls"] / detection
    assert row["loss_ratio/cls"] == pytest.approx(expected)
    assert row["iteration"] == 2 and row["total_loss"] > 0


def test_hooks_stand_before_the_writer_also_where_there_is_none(
    teacher_files, tmp_path, monkeypatch
):
    ours = [DistillLossHook] * 3 + [LossRatioHook]
    cfg = distill_cfg(teacher_files, "OUTPUT_DIR", str(tmp_path))
    kinds = [type(hook) for hook in DistillTrainer(cfg)._hooks]
    assert kinds[-6:] == [*ours, PeriodicWriter, StopOnSignal]
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    kinds = [type(hook) for hook in DistillTrainer(cfg)._hooks]
    assert kinds[-5:] == [*ours, StopOnSignal] and PeriodicWriter not in kinds


def test_building_hooks_changes_nothing(teacher_files, tmp_path):
    trainer = DistillTrainer(distill_cfg(teacher_files, "OUTPUT_DIR", str(tmp_path)))
    before = {**vars(trainer), **trainer.checkpointer.checkpointables}
    hooks, kinds = list(trainer._hooks), [type(hook) for hook in trainer.build_hooks()]
    after = {**vars(trainer), **trainer.checkpointer.checkpointables}
    assert list(after) == list(before) and all(after[k] is before[k] for k in after)
    assert trainer._hooks == hooks and set(kinds) < {type(hook) for hook in hooks}


def test_the_trainer_knows_at_most_eight_modules():
    tree = ast.parse((ROOT / "d2kd/engine/trainer.py").read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = {(x.level, x.module) for x in found if x.level or x.module.startswith("d2kd")}
    assert all(module for _, module in own) and 3 < len(own) <= 8


def test_hooks_serve_any_trainer(teacher_files):
    cfg = distill_cfg(teacher_files)
    distiller = build_distiller(cfg)
    for name in ("feature", "cls", "reg"):
        distiller.unregister_loss_hook(name)
    trainer = SimpleTrainer(distiller, [make_batch()] * 4, build_optimizer(cfg, distiller))
    trainer.register_hooks(build_distill_hooks(cfg))
    trainer.train(0, 4)
    weights = trainer.storage.history("loss_weight/cls").values()
    assert [value for value, _ in weights] == [1.0, 0.75, 0.5, 0.25]
    with pytest.raises(RuntimeError, match="build_distill_hooks"):
        distiller._get_hook("cls")


def test_precise_bn_leaves_the_teacher(teacher_files, tmp_path):
    opts = ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2]
    trainer = _start(DistillTrainer, distill_cfg(teacher_files, *opts, "OUTPUT_DIR", str(tmp_path)))
    before = {k: v.clone() for k, v in trainer.model.teacher.state_dict().items()}
    pair = trainer.model.student.backbone, trainer.model.teacher.model.backbone
    student_calls, teacher_calls = count_calls(*pair)
    trainer.train()
    assert len(student_calls) == 3 + 2 * 2, "the student's statistics were taken twice"
    assert len(teacher_calls) == 3, "nobody reads the teacher's answers while they are taken"
    assert _equal(before, dict(trainer.model.teacher.state_dict()))


def test_absent_student_weights_are_named(teacher_files, tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", "nowhere.pth"]
    trainer = DistillTrainer(distill_cfg(teacher_files, *opts))
    with pytest.raises(WeightsError, match="^MODEL.WEIGHTS nowhere.pth is not there"):
        trainer.resume_or_load(resume=False)


def test_unknown_optimizer_is_named(tmp_path):
    cfg = plain_cfg("SOLVER.OPTIMIZER", "ADAM", "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(
        ConfigError, match="SOLVER.OPTIMIZER is 'ADAM': set it to one of .'SGD', 'ADAMW'"
    ):
        DistillTrainer(cfg)


def test_adamw_has_the_parameter_groups_of_the_stock_optimizer():
    opts = ["SOLVER.WEIGHT_DECAY", 0.05, "SOLVER.WEIGHT_DECAY_NORM", 0.0]
    model = build_model(plain_cfg())
    built = [
        DistillTrainer.build_optimizer(plain_cfg(*opts, "SOLVER.OPTIMIZER", name), model)
        for name in ("SGD", "ADAMW")
    ]
    assert [type(x).__name__.startswith("AdamW") for x in built] == [False, True]
    decays = [
        sorted(
            (p.numel(), group["weight_decay"]) for group in x.param_groups for p in group["params"]
        )
        for x in built
    ]
    assert decays[0] == decays[1] and {decay for _, decay in decays[0]} == {0.05, 0.0}
