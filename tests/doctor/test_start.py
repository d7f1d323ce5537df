# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The doctor's steps are of the weights that training starts from."""

import torch
from detectron2.modeling import build_model

from d2kd.doctor import Status
from tests.common.examine import examine
from tests.common.helpers import distill_cfg


def _save_student(path, teacher_files, *opts):
    """A checkpoint of a student with some options, its classifier scaled to be told apart."""
    torch.manual_seed(0)
    state = build_model(distill_cfg(teacher_files, *opts)).state_dict()
    state["roi_heads.box_predictor.cls_score.weight"] *= 1e4
    torch.save({"model": state}, path)
    return ["MODEL.WEIGHTS", str(path)]


def test_the_steps_are_of_the_weights_that_training_starts_from(setup, teacher_files, tmp_path):
    opts = _save_student(tmp_path / "start.pth", teacher_files)
    random, *started = (examine(setup[0], *x) for x in ([], opts, [*opts, "SEED", "2"]))
    assert started[0]["start"].text.endswith("start.pth: 293 of 293 tensors")
    losses = [_mean_of("loss_cls", found) for found in (random, *started)]
    # Such a classifier is far from indifferent, whatever the seed.
    assert min(losses[1:]) > 3 * losses[0], losses


def _mean_of(loss, found):
    return float(found["finite"].text.split(f" {loss} ")[1].split(",")[0])


def test_a_start_that_matches_in_part(setup, teacher_files, tmp_path):
    opts = _save_student(tmp_path / "start.pth", teacher_files, "MODEL.ROI_HEADS.NUM_CLASSES", 9)
    state = torch.load(opts[1])["model"]
    state = {k: v for k, v in state.items() if not k.startswith(("proposal", "backbone.fpn"))}
    torch.save({"model": state}, opts[1])
    start = examine(setup[0], *opts)["start"]
    assert start.status is Status.OK and "267 of 293 tensors" in start.text
    assert "stay random: 16 of 281 of backbone, 6 of 6 of proposal_generator, 4 of" in start.text
    assert "of another shape: roi_heads.box_predictor.cls_score.weight: file (10, 16)" in start.text


def test_a_start_that_matches_nothing(setup, tmp_path):
    torch.save({"model": {"layer1.conv1.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    found = examine(setup[0], "MODEL.WEIGHTS", str(tmp_path / "other.pth"))
    assert found["start"].status is Status.ERROR and "time" not in found
    assert "0 of 293 tensors. The file holds 1 tensors: layer1.conv1" in found["start"].text


def test_a_start_that_cannot_be_fetched_is_said_where_it_matters(setup):
    # Port 9 of this machine: nobody listens, and nothing leaves it.
    found = examine(setup[0], "MODEL.WEIGHTS", "http://127.0.0.1:9/start.pth")
    assert found["start"].status is Status.WARNING and "cannot be fetched" in found["start"].text
    assert found["ratio cls"].status is Status.WARNING
    advice = found["ratio cls"].advice
    assert "used random weights, not MODEL.WEIGHTS" in advice and "would make it" not in advice
