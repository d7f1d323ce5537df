# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL's inference: decoding, suppression and export by tracing."""

import math

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from d2kd.modeling.meta_arch.gfl.losses import expected_distance
from tests.common.tiny_gfl import head_outputs, make_batch, spread_gfl


@pytest.fixture
def model():
    return spread_gfl()


def _perfect_predictions(model, maps, batch):
    """Logits and bins of each level that say the ground truth."""
    anchors = model.anchor_generator(maps)
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in batch])
    labels, boxes = torch.stack(labels), torch.stack(boxes)
    logits = 12 * nn.functional.one_hot(labels, 6)[..., :5].float() - 6
    regions = Boxes.cat(anchors).tensor
    distances = torch.stack([model.box2box_transform.get_deltas(regions, x) for x in boxes])
    below = distances.clamp(0, 15.9).floor()
    bins = torch.full((*distances.shape, 17), -1e4)
    share = (distances.clamp(0, 15.9) - below)[..., None]
    bins.scatter_(-1, below[..., None].long(), (1 - share).log())
    bins.scatter_(-1, below[..., None].long() + 1, share.log().clamp(min=-1e4))
    lengths, sizes = [len(a) for a in anchors], [x.shape[-2:] for x in maps]
    return [
        [
            level.transpose(1, 2).unflatten(2, size)
            for level, size in zip(x.split(lengths, dim=1), sizes)
        ]
        for x in (logits, bins.flatten(2))
    ]


def test_a_perfect_head_gives_back_the_ground_truth(model):
    """Logits that say the ground truth come out of inference as exactly these boxes."""
    batch = make_batch()
    maps, _ = head_outputs(model, batch)
    predictions = _perfect_predictions(model, maps, batch)
    results = model.forward_inference(model.preprocess_image(batch), maps, predictions)
    for result, x in zip(results, batch):
        gt = x["instances"]
        order = result.pred_classes.argsort()
        assert result.pred_classes[order].tolist() == gt.gt_classes.tolist()
        torch.testing.assert_close(
            result.pred_boxes.tensor[order], gt.gt_boxes.tensor, rtol=0, atol=0.01
        )
        assert result.scores.min().item() == pytest.approx(1 / (1 + math.exp(-6)))


def test_inference_respects_threshold_suppression_and_limits(model):
    batch = make_batch()
    with torch.no_grad():
        images, (maps, predictions) = model.preprocess_image(batch), head_outputs(model, batch)

    def detect(**settings):
        vars(model).update(settings)
        return model.forward_inference(images, maps, predictions)[0]

    few = detect(max_detections_per_image=7)
    many = detect(max_detections_per_image=10000)
    assert len(few) == 7 and torch.equal(few.scores, many.scores[:7])
    assert len(many) > 7 and many.scores.min() > 0.05
    iou = pairwise_iou(many.pred_boxes, many.pred_boxes).fill_diagonal_(0)
    iou[many.pred_classes[:, None] != many.pred_classes] = 0
    assert 0.5 < iou.max() <= 0.6
    everything = detect(test_nms_thresh=1.0)
    assert len(many) < len(everything)
    assert len(detect(test_topk_candidates=1)) == len(maps)
    assert len(detect(test_score_thresh=1.0)) == 0


def test_traced_model_equals_the_model_on_another_image(model):
    model.eval()
    example = [{"image": torch.randint(0, 256, (3, 96, 128)).float()}]
    adapter = TracingAdapter(model, example)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    other = torch.randint(0, 256, (3, 160, 130)).float()
    result = adapter.outputs_schema(traced(other))[0]["instances"]
    expected = adapter.outputs_schema(adapter(other))[0]["instances"]
    assert len(expected) > 10 and list(result.image_size) == [160, 130]
    for name, value in expected.get_fields().items():
        value, traced_value = (getattr(x, "tensor", x) for x in (value, result.get(name)))
        torch.testing.assert_close(traced_value, value)


def test_rows_of_bins_decode_to_the_boxes_of_inference(model):
    """What distillation reads, rows of the head's own maps, is what inference decodes."""
    batch = make_batch()
    with torch.no_grad():
        maps, (_, bins) = head_outputs(model, batch)
    n, y, x = 1, 3, 5
    row = bins[1][n, :, y, x].view(1, 4, 17)
    anchor = model.anchor_generator(maps)[1].tensor[[y * maps[1].shape[3] + x]]
    box = model.box2box_transform.apply_deltas(expected_distance(row), anchor)
    left, top, right, bottom = (row.softmax(dim=2)[0] @ torch.arange(17.0) * 16).tolist()
    expected = [16 * x - left, 16 * y - top, 16 * x + right, 16 * y + bottom]
    assert box[0].tolist() == pytest.approx(expected, abs=1e-3)
