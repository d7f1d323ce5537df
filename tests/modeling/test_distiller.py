# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The meta-architecture: what it returns, what it trains, and what it leaves alone."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer

from d2kd.engine import DistillTrainer
from d2kd.modeling import Distiller
from tests.common.helpers import (
    build_distiller,
    count_calls,
    distill_cfg,
    make_batch,
    plain_cfg,
    run,
    unscaled,
    write_teacher,
)

DETECTION = ["loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"]
DISTILLATION = ["loss_distill_feature", "loss_distill_cls", "loss_distill_reg"]


def test_training_returns_detection_and_distillation_losses(teacher_files):
    distiller = build_distiller(distill_cfg(teacher_files, "DISTILL.REG.GATE", "none"))
    losses = run(distiller, make_batch())
    assert list(losses) == DETECTION + DISTILLATION
    assert all(x.ndim == 0 and torch.isfinite(x) and x > 0 for x in losses.values())


def test_detection_losses_are_those_of_the_plain_student(teacher_files):
    distiller = build_distiller(distill_cfg(teacher_files), seed=1)
    torch.manual_seed(1)
    plain = build_model(plain_cfg()).train()
    ours, stock = (run(model, make_batch()) for model in (distiller, plain))
    assert all(torch.equal(ours[k], stock[k]) for k in DETECTION)


def test_the_teacher_does_not_touch_the_random_stream(teacher_files):
    streams = []
    for build in (lambda: build_model(plain_cfg()), lambda: Distiller(distill_cfg(teacher_files))):
        torch.manual_seed(4)
        model = build()
        streams.append((getattr(model, "student", model).state_dict(), torch.rand(3)))
    (plain, after_plain), (distilled, after_distilled) = streams
    assert all(torch.equal(distilled[k], plain[k]) for k in plain) and list(distilled) == list(
        plain
    )
    assert torch.equal(after_plain, after_distilled)


def test_eval_mode_is_the_student(teacher_files):
    distiller = build_distiller(distill_cfg(teacher_files)).eval()
    calls = count_calls(distiller.teacher.model.backbone)
    for ours, student in zip(distiller(make_batch()), distiller.student(make_batch())):
        ours, student = ours["instances"], student["instances"]
        assert torch.equal(ours.pred_boxes.tensor, student.pred_boxes.tensor)
        assert torch.equal(ours.scores, student.scores)
    assert calls == [[]]


def test_a_loss_without_hook_says_what_to_register(teacher_files):
    distiller = build_distiller(distill_cfg(teacher_files))
    distiller.unregister_loss_hook("cls")
    with pytest.raises(RuntimeError, match="'cls': register .*build_distill_hooks"):
        run(distiller, make_batch())
    with pytest.raises(ValueError, match="no distillation loss 'box'; there are .'feature'"):
        distiller.register_loss_hook("box", unscaled)


@pytest.mark.parametrize(
    "losses, runs",
    [(["feature"], (1, 0, 0)), (["cls"], (1, 0, 1)), (["reg"], (1, 0, 1))],
)
def test_only_what_the_enabled_losses_require_runs(teacher_files, losses, runs):
    distiller = build_distiller(distill_cfg(teacher_files, "DISTILL.LOSSES", losses))
    teacher = distiller.teacher.model
    calls = count_calls(
        teacher.backbone, teacher.proposal_generator.rpn_head.conv, teacher.roi_heads.box_head
    )
    assert list(run(distiller, make_batch())) == DETECTION + [f"loss_distill_{n}" for n in losses]
    assert tuple(len(seen) for seen in calls) == runs


def test_the_teacher_rests_once_all_losses_are_finished(teacher_files):
    distiller = build_distiller(distill_cfg(teacher_files, "DISTILL.FEATURE.ADAPTER", "3x3"))
    (calls,) = count_calls(distiller.teacher.model.backbone)
    distiller.finish_loss("feature")
    distiller.finish_loss("cls")
    run(distiller, make_batch())
    assert len(calls) == 1, "one loss still wants it"
    distiller.finish_loss("reg")
    losses, plain = run(distiller, make_batch()), run(distiller.student, make_batch())
    assert len(calls) == 1 and list(losses) == DETECTION + DISTILLATION
    assert all(torch.equal(losses[k], plain[k]) for k in DETECTION)
    assert all(losses[k] == 0 for k in DISTILLATION)
    assert distiller.last_step.losses.keys() == losses.keys()
    sum(losses.values()).backward()
    adapters = distiller.distill_losses.parameters()
    assert all(p.grad is not None and not p.grad.any() for p in adapters)
    distiller.register_loss_hook("reg", unscaled)
    run(distiller, make_batch())
    assert len(calls) == 2


def test_the_teacher_goes_on_proposing_after_the_losses(teacher_files):
    distiller = build_distiller(distill_cfg(teacher_files, "DISTILL.PROPOSALS", "union"))
    for name in distiller.distill_losses:
        distiller.finish_loss(name)
    (calls,) = count_calls(distiller.teacher.model.backbone)
    run(distiller, make_batch())
    assert len(calls) == 1


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
def test_one_step_moves_student_and_adapters_and_not_the_teacher(teacher_files, optimizer):
    opts = ["SOLVER.OPTIMIZER", optimizer, "DISTILL.FEATURE.ADAPTER", "3x3"]
    # Without decay, a parameter that has no gradient stays.
    cfg = distill_cfg(teacher_files, *opts, "SOLVER.WEIGHT_DECAY", 0.0)
    distiller = build_distiller(cfg)
    solver = DistillTrainer.build_optimizer(cfg, distiller)
    trained = {id(p) for group in solver.param_groups for p in group["params"]}
    ours = [*distiller.student.parameters(), *distiller.distill_losses.parameters()]
    assert trained == {id(p) for p in ours if p.requires_grad}
    adapters = dict(distiller.distill_losses.named_parameters())
    assert set(adapters) == {
        f"feature.adapters.p{i}.{x}" for i in range(2, 7) for x in ("weight", "bias")
    }
    before = {k: v.detach().clone() for k, v in distiller.named_parameters()}
    sum(run(distiller, make_batch()).values()).backward()
    solver.step()
    for name, parameter in distiller.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (not name.startswith("teacher.")), name


def test_teacher_is_unchanged_after_ten_steps(teacher_files):
    cfg = distill_cfg(teacher_files)
    distiller, batch = build_distiller(cfg), make_batch()
    state = distiller.teacher.state_dict()
    before = {k: v.clone() for k, v in state.items()}
    student_buffer = distiller.student.backbone.bottom_up.stem.conv1.norm.running_mean.clone()
    solver = build_optimizer(cfg, distiller)
    for i in range(10):
        distiller.train()
        losses = run(distiller, batch, seed=i)
        solver.zero_grad()
        sum(losses.values()).backward()
        solver.step()
    assert not any(m.training for m in distiller.teacher.modules())
    assert distiller.student.training
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())
    moved = distiller.student.backbone.bottom_up.stem.conv1.norm.running_mean
    assert not torch.equal(moved, student_buffer)


@pytest.mark.parametrize("boxes", [([], []), ([], [[30, 20, 60, 44]])])
def test_images_without_ground_truth_give_attached_finite_losses(teacher_files, boxes):
    distiller = build_distiller(distill_cfg(teacher_files))
    losses = run(distiller, make_batch(boxes))
    assert list(losses) == DETECTION + DISTILLATION, "keys must not depend on the batch"
    assert all(x.requires_grad and torch.isfinite(x) for x in losses.values())
    if not any(boxes):
        assert all(losses[k] == 0 for k in DISTILLATION)
    sum(losses.values()).backward()
    for name, parameter in distiller.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_a_step_in_bfloat16(teacher_files):
    distiller = build_distiller(distill_cfg(teacher_files))
    exact = run(distiller, make_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run(distiller, make_batch())
    assert all(losses[k].dtype == torch.float32 for k in DISTILLATION)
    sum(losses.values()).backward()
    grads = [p.grad for p in distiller.parameters() if p.requires_grad]
    assert all(torch.isfinite(g).all() for g in grads)
    torch.testing.assert_close(
        losses["loss_distill_feature"], exact["loss_distill_feature"], rtol=0.2, atol=0.01
    )


def _distillation(teacher_files, name, *opts):
    """The value of one loss with the given keys, all else being equal."""
    distiller = build_distiller(distill_cfg(teacher_files, *opts))
    torch.manual_seed(0)
    for p in distiller.student.roi_heads.box_predictor.parameters():
        torch.nn.init.normal_(p, std=0.1)
    for p in distiller.distill_losses.parameters():
        torch.nn.init.constant_(p, 0.01)
    return run(distiller, make_batch())[f"loss_distill_{name}"].detach()


def test_keys_of_the_regression_loss_reach_it(teacher_files):
    gates = ["student", "proposal", "none"]
    values = [_distillation(teacher_files, "reg", "DISTILL.REG.GATE", gate) for gate in gates]
    assert values[2] > max(values[:2]), "the gates refuse something here"
    twice = ["DISTILL.REG.GATE", "none", "DISTILL.REG.WEIGHT", 2.0]
    torch.testing.assert_close(_distillation(teacher_files, "reg", *twice), 2 * values[2])


@pytest.mark.parametrize("gate", ["student", "proposal", "none"])
def test_the_gate_that_is_configured_is_the_one_in_force(teacher_files, gate):
    distiller = Distiller(distill_cfg(teacher_files, "DISTILL.REG.GATE", gate))
    assert distiller.distill_losses["reg"].gate == gate


def test_keys_of_the_feature_loss_reach_it(teacher_files):
    whole, some, sums, sharp = (
        _distillation(teacher_files, "feature", *opts)
        for opts in (
            [],
            ["DISTILL.FEATURE.LEVELS", ["p2", "p3"]],
            ["DISTILL.FEATURE.CHANNELS", "sum"],
            ["DISTILL.MASKS.GAUSSIAN.SIGMA2", 0.1],
        )
    )
    assert some < whole and sharp != whole
    torch.testing.assert_close(sums, 24 * whole)


def test_richness_reads_the_teacher_rpn(teacher_files):
    opts = ["DISTILL.FEATURE.MASK", "richness", "DISTILL.CLS.WHERE", "richness"]
    distiller = build_distiller(
        distill_cfg(teacher_files, *opts, "DISTILL.LOSSES", ["feature", "cls"])
    )
    assert distiller.required.requires == {"features", "dense_logits"}
    losses = run(distiller, make_batch())
    assert losses["loss_distill_cls"] > 0 and losses["loss_distill_feature"] > 0


def test_a_teacher_of_another_family_teaches_features(tmp_path):
    opts = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", ["p3", "p4"]]
    retina = write_teacher(tmp_path, *opts, "MODEL.ANCHOR_GENERATOR.SIZES", [[8]])
    features = ["DISTILL.LOSSES", ["feature"], "DISTILL.FEATURE.LEVELS", ["p3", "p4"]]
    assert "loss_distill_feature" in run(
        build_distiller(distill_cfg(retina, *features)), make_batch()
    )
    with pytest.raises(ValueError, match="MODEL.META_ARCHITECTURE is GeneralizedRCNN"):
        Distiller(distill_cfg(retina, "DISTILL.FEATURE.LEVELS", ["p3", "p4"]))
