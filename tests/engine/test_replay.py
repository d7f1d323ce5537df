# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A baseline that diverges is reported as a distilled run is; masks and keypoints are replayed."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from d2kd.engine import DistillTrainer
from d2kd.engine.nonfinite import NonFiniteLossError, read_replay
from d2kd.engine.replay import from_plain, to_plain
from d2kd.utils.rng_state import set_random_state
from tests.common.helpers import plain_cfg


def _sample():
    instances = Instances((48, 64), gt_boxes=Boxes(torch.tensor([[1.0, 2, 30, 40]])))
    instances.gt_classes = torch.tensor([2])
    instances.gt_masks = PolygonMasks([[np.array([1.0, 2, 30, 2, 30, 40])]])
    instances.gt_keypoints = Keypoints(torch.rand(1, 3, 3))
    proposals = Instances((48, 64), proposal_boxes=Boxes(torch.rand(3, 4)))
    proposals.objectness_logits = torch.rand(3)
    sample = {"image": torch.zeros(3, 48, 64, dtype=torch.uint8), "file_name": "a.png"}
    return {**sample, "height": 48, "instances": instances, "proposals": proposals}


def test_masks_keypoints_and_proposals_come_back(tmp_path):
    torch.save(to_plain(_sample()), tmp_path / "a.pth")
    back = from_plain(torch.load(tmp_path / "a.pth", weights_only=True))
    assert back.keys() == _sample().keys() and back["height"] == 48
    truth, expected = back["instances"], _sample()["instances"]
    assert truth.image_size == (48, 64) and len(truth) == 1
    assert truth.get_fields().keys() == expected.get_fields().keys()
    for name, value in truth.get_fields().items():
        assert type(value) is type(expected.get(name)), name
    assert np.array_equal(truth.gt_masks.polygons[0][0], expected.gt_masks.polygons[0][0])
    assert len(back["proposals"].proposal_boxes) == 3


def test_bitmasks_come_back(tmp_path):
    instances = Instances((4, 4), gt_masks=BitMasks(torch.eye(4, dtype=torch.bool)[None]))
    back = from_plain(to_plain({"instances": instances}))["instances"]
    assert torch.equal(back.gt_masks.tensor, instances.gt_masks.tensor)


def _baseline(folder, *opts):
    trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(folder), *opts))
    trainer.resume_or_load(resume=False)
    return trainer


@pytest.mark.usefixtures("train_set")
@pytest.mark.parametrize("batches", [1, 2])
def test_a_baseline_names_loss_and_images_and_writes_the_batch(tmp_path, batches):
    trainer = _baseline(tmp_path, "SOLVER.ACCUMULATE_STEPS", batches)
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.bbox_pred.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="iteration 0: loss_box_reg is nan") as caught:
        trainer.train()
    message = str(caught.value)
    assert "finite: loss_cls " in message and "nonfinite_0000000.pth" in message
    assert message.split("images: ")[1].split("\n")[0].count(".png") == 2
    record = read_replay(str(tmp_path / "nonfinite_0000000.pth"))
    again = DistillTrainer.build_model(trainer.cfg).train()
    again.load_state_dict(record["model"])
    set_random_state(record["random"])
    with EventStorage():
        losses = {name: value.item() for name, value in again(record["batch"]).items()}
    assert losses == pytest.approx(record["losses"], rel=1e-6, nan_ok=True)


@pytest.mark.usefixtures("train_set")
def test_a_baseline_whose_forward_fails_is_reported_too(tmp_path):
    trainer = _baseline(tmp_path)
    with torch.no_grad():
        trainer.model.backbone.fpn_output2.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="own forward failed: .*diverged"):
        trainer.train()
    assert len(read_replay(str(tmp_path / "nonfinite_0000000.pth"))["batch"]) == 2
