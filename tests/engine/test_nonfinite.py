# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A loss that is not finite stops the run, named, its batch on disk; clipping holds adapters."""

from pathlib import Path

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from d2kd.engine import DistillTrainer
from d2kd.engine.nonfinite import NonFiniteLossError, read_replay, report_nonfinite_loss
from d2kd.engine.train_loop import AccumulatingTrainer, CheckedAMPTrainer, CheckedTrainer
from d2kd.utils.rng_state import set_random_state
from tests.common.helpers import LEVELS, build_distiller, distill_cfg, make_batch

pytestmark = pytest.mark.usefixtures("train_set")


def _trainer(teacher_files, folder, *opts):
    seed_all_rng(1)
    trainer = DistillTrainer(distill_cfg(teacher_files, "OUTPUT_DIR", str(folder), *opts))
    trainer.resume_or_load(resume=False)
    return trainer


def _break_adapter(trainer, level="p3"):
    with torch.no_grad():
        trainer.model.distill_losses["feature"].adapters[level].weight[0] = float("nan")


def test_names_loss_level_iteration_and_images(teacher_files, tmp_path):
    trainer = _trainer(teacher_files, tmp_path)
    _break_adapter(trainer)
    before = {k: v.clone() for k, v in trainer.model.student.named_parameters()}
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "iteration 0: loss_distill_feature is nan on level p3\n" in message
    assert "loss_distill_cls " in message.split("finite: ")[1].split("\n")[0]
    assert message.split("images: ")[1].split("\n")[0].count(".png") == 2
    assert "DISTILL.FEATURE.WEIGHT" in message and "nonfinite_0000000.pth" in message
    # The optimizer has not moved anything by that loss.
    assert all(torch.equal(before[k], v) for k, v in trainer.model.student.named_parameters())
    assert isinstance(caught.value.__cause__, FloatingPointError)


def test_the_batch_is_replayed_from_the_file(teacher_files, tmp_path):
    trainer = _trainer(teacher_files, tmp_path)
    _break_adapter(trainer)
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    expected = {k: v.item() for k, v in trainer.model.last_step.losses.items()}
    record = read_replay(str(tmp_path / "nonfinite_0000000.pth"))
    distiller = build_distiller(distill_cfg(teacher_files), seed=9)
    distiller.student.load_state_dict(record["model"])
    distiller.distill_losses.load_state_dict(record["distill_losses"])
    set_random_state(record["random"])
    with EventStorage():
        losses = {k: v.item() for k, v in distiller(record["batch"]).items()}
    assert record["iteration"] == 0 and losses.keys() == record["losses"].keys()
    for name, value in losses.items():
        assert value == pytest.approx(expected[name], rel=1e-6, nan_ok=True), name
        assert value == pytest.approx(record["losses"][name], rel=1e-6, nan_ok=True), name


def test_a_detection_loss_is_named_too(teacher_files, tmp_path):
    trainer = _trainer(teacher_files, tmp_path, "DISTILL.LOSSES", ["cls"])
    with torch.no_grad():
        trainer.model.student.roi_heads.box_predictor.bbox_pred.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="iteration 0: loss_box_reg is nan") as caught:
        trainer.train()
    assert "SOLVER.BASE_LR" in str(caught.value)


def test_a_forward_that_fails_in_itself_is_reported_with_its_batch(teacher_files, tmp_path):
    trainer = _trainer(teacher_files, tmp_path)
    with torch.no_grad():
        trainer.model.student.backbone.fpn_output2.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="own forward failed: .*diverged"):
        trainer.train()
    assert len(read_replay(str(tmp_path / "nonfinite_0000000.pth"))["batch"]) == 2


def test_a_file_that_cannot_be_written_does_not_hide_the_loss(teacher_files, tmp_path):
    distiller = build_distiller(distill_cfg(teacher_files))
    with pytest.raises(NonFiniteLossError, match="could not be written to .*No such file|Parent"):
        with report_nonfinite_loss(distiller, 4, str(tmp_path / "absent")), EventStorage():
            distiller(make_batch())
            raise FloatingPointError("nan")


def test_a_disk_that_fills_leaves_no_half_file(teacher_files, tmp_path, monkeypatch):
    def fill(record, file):
        Path(getattr(file, "name", file)).write_bytes(b"half")
        raise OSError("No space left on device")

    distiller = build_distiller(distill_cfg(teacher_files))
    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(NonFiniteLossError, match="could not be written to .*No space left"):
        with report_nonfinite_loss(distiller, 4, str(tmp_path)), EventStorage():
            distiller(make_batch())
            raise FloatingPointError("nan")
    assert not list(tmp_path.iterdir())


def test_other_errors_and_finite_steps_pass(teacher_files, tmp_path):
    distiller = build_distiller(distill_cfg(teacher_files))
    with pytest.raises(KeyError, match="mine"):
        with report_nonfinite_loss(distiller, 0, str(tmp_path)):
            raise KeyError("mine")
    with report_nonfinite_loss(torch.nn.Identity(), 0, str(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())


@pytest.fixture
def second_process(monkeypatch):
    """This process is the second one of two, without the first."""
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "gather", lambda data: [])


def _events(distiller, trainer_class, monkeypatch, *args):
    """A trainer of one batch after another, and a list of its reads of values and its steps."""
    events = []

    class Optimizer(torch.optim.SGD):
        def step(self, *args):
            events.append("step")
            return super().step(*args)

    read = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda x: (events.append("read"), read(x))[1])
    optimizer = Optimizer([p for p in distiller.parameters() if p.requires_grad], lr=0.0)
    return trainer_class(distiller, [make_batch()] * 9, optimizer, *args), events


@pytest.mark.parametrize("trainer_class, args", [(CheckedTrainer, ()), (AccumulatingTrainer, (2,))])
def test_a_process_other_than_the_first_stops_before_its_step(
    teacher_files, tmp_path, monkeypatch, second_process, trainer_class, args
):
    distiller = build_distiller(distill_cfg(teacher_files))
    trainer, events = _events(distiller, trainer_class, monkeypatch, *args)

    def run_step():
        micro_steps = trainer.micro_steps if isinstance(trainer, AccumulatingTrainer) else ()
        with report_nonfinite_loss(distiller, 7, str(tmp_path), micro_steps), EventStorage():
            trainer.run_step()

    run_step()
    # After it, a read would wait for the optimizer's kernels.
    assert events.index("step") == len(events) - 1
    distiller.distill_losses["feature"].adapters["p2"].bias.data.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="nonfinite_0000007_rank1.pth"):
        run_step()
    assert events.count("step") == 1


def test_a_process_other_than_the_first_reads_its_losses_once_more_in_one(
    teacher_files, monkeypatch, second_process
):
    distiller = build_distiller(distill_cfg(teacher_files))
    counts = []
    for trainer_class in (SimpleTrainer, CheckedTrainer):
        with monkeypatch.context() as counted, EventStorage():
            trainer, events = _events(distiller, trainer_class, counted)
            torch.manual_seed(1)
            trainer.run_step()
        counts.append(events.count("read"))
    assert counts[1] == counts[0] + 1


def test_the_checked_step_is_the_stock_one():
    assert CheckedTrainer.run_step is SimpleTrainer.run_step
    assert CheckedAMPTrainer.run_step is AMPTrainer.run_step


def test_levels_are_kept_for_masked_class_losses(teacher_files):
    weights = ["DISTILL.CLS.WEIGHT", 2.0, "DISTILL.FEATURE.WEIGHT", 3.0]
    cfg = distill_cfg(teacher_files, "DISTILL.CLS.WHERE", "richness", *weights)
    distiller = build_distiller(cfg)
    with EventStorage():
        distiller(make_batch())
    step = distiller.last_step
    assert list(step.losses_per_level["cls"]) == LEVELS
    assert step.bad_levels()["cls"] == []
    for name in ("cls", "feature"):
        total = sum(step.losses_per_level[name].values())
        torch.testing.assert_close(total, step.losses[f"loss_distill_{name}"])


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
@pytest.mark.parametrize("kind, limit", [("value", 1e-4), ("norm", 1e-3)])
def test_gradient_clipping_holds_adapters(teacher_files, tmp_path, optimizer, kind, limit):
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind]
    clip += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", limit, "SOLVER.OPTIMIZER", optimizer]
    trainer = _trainer(teacher_files, tmp_path, *clip, "SOLVER.MAX_ITER", 1)
    trainer.train()
    everything = {k: p.grad for k, p in trainer.model.named_parameters() if p.grad is not None}
    adapters = {k: g for k, g in everything.items() if k.startswith("distill_losses")}
    assert len(adapters) == 2 * len(LEVELS)
    for name, gradient in adapters.items():
        assert gradient.abs().max() <= limit * (1 + 1e-4), name
        assert kind == "value" or gradient.norm() <= limit * (1 + 1e-4), name
    largest = max(g.abs().max() if kind == "value" else g.norm() for g in adapters.values())
    assert largest > 0.9 * limit  # there was something to clip
