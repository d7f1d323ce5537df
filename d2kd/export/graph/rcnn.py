# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Faster and Mask R-CNN, from tensors to tensors.

Shape shorthand in this file:
    N: images; P: proposals of an image, at most; R: proposals of all images together
    K: foreground classes; T: boxes of an image; D: detections of an image, at most
    M: side of a mask
"""

from typing import NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torch.nn import functional as F

from .candidates import Detections, Nms, best, clip, gather_rows, not_empty, prepare_images

__all__ = ["MaskedDetections", "TensorRCNN", "pool"]

_NO_SCORE = float("-inf")


class MaskedDetections(NamedTuple):
    """``Detections`` with a mask of each: (N, D, M, M), the probability within the box."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor


def pool(pooler: ROIPooler, features: list[Tensor], image: Tensor, boxes: Tensor) -> Tensor:
    """What ``ROIPooler`` gives, for regions that are not sorted by image, and one row more.

    Detectron2's layers ask whether their input is empty, which cannot be answered while a graph is
    recorded for any number of regions. With one row more it never is.

    Args:
        pooler: Detectron2's.
        features: (N, C, H, W) of each of its levels.
        image: (R,), the index of each region's image.
        boxes: (R, 4), the regions.

    Returns:
        (R + 1, C, S, S) for an output size S; the last row means nothing.
    """
    rois = F.pad(torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1), (0, 0, 0, 1))
    if len(features) == 1:
        return pooler.level_poolers[0](features[0], rois)
    levels = _levels_of(pooler, rois[:, 1:])
    result = features[0].new_zeros((rois.shape[0], features[0].shape[1], *pooler.output_size))
    for i, level_pooler in enumerate(pooler.level_poolers):
        (rows,) = (levels == i).nonzero(as_tuple=True)
        result = result.index_put((rows,), level_pooler(features[i], rois[rows]))
    return result


def _levels_of(pooler: ROIPooler, boxes: Tensor) -> Tensor:
    """The index (R,) of each box's level; ``Boxes`` of an unknown number cannot be recorded."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    level = pooler.canonical_level + torch.log2(sides / pooler.canonical_box_size + 1e-8)
    return level.floor().clamp(pooler.min_level, pooler.max_level).long() - pooler.min_level


class TensorRCNN(nn.Module):
    """A two-stage detector's inference, with its own parts, for any number of images."""

    def __init__(self, detector: GeneralizedRCNN, nms: Nms, dtype: torch.dtype = torch.float32):
        """
        Args:
            detector: in eval mode; backbone and heads are in ``dtype``.
            nms: ``keep_by_nms``, or the same in another form.
            dtype: that backbone and heads compute in; the rest is float32.
        """
        super().__init__()
        self.detector = detector
        self.nms = nms
        self.dtype = dtype

    def forward(self, images: Tensor, image_sizes: Tensor) -> Detections | MaskedDetections:
        """Detect.

        Args:
            images, image_sizes: see ``prepare_images``.
        """
        model = self.detector
        divisor = model.backbone.size_divisibility
        x = prepare_images(images, image_sizes, model.pixel_mean, model.pixel_std, divisor)
        features = model.backbone(x.to(self.dtype))
        boxes, valid = self.propose(features, image_sizes)
        maps = {name: x.float() for name, x in features.items()}
        found = self.classify(maps, boxes, valid, image_sizes)
        if not model.roi_heads.mask_on:
            return found
        return MaskedDetections(*found, self.predict_masks(maps, found))

    def propose(self, features: dict[str, Tensor], image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The proposals (N, P, 4) of each image, the best first, and which rows hold one (N, P)."""
        rpn = self.detector.proposal_generator
        levels = [features[name] for name in rpn.in_features]
        anchors = [x.tensor for x in rpn.anchor_generator(levels)]
        logits, deltas = rpn.rpn_head(levels)
        found = [self._propose(x, y, a, image_sizes) for x, y, a in zip(logits, deltas, anchors)]
        boxes, scores = (torch.cat(x, dim=1) for x in zip(*found))
        scores, index = best(scores, rpn.post_nms_topk[False])
        return gather_rows(boxes, index), scores > _NO_SCORE

    def _propose(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Boxes (N, T, 4) of a level and their scores (N, T), -inf where they do not stay."""
        rpn = self.detector.proposal_generator
        logits = logits.float().permute(0, 2, 3, 1).flatten(1)
        deltas = deltas.float().unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        scores, index = best(logits, rpn.pre_nms_topk[False])
        rows = gather_rows(deltas, index)
        boxes = rpn.box2box_transform.apply_deltas(rows.flatten(0, 1), anchors[index.flatten()])
        boxes = clip(boxes.view_as(rows), image_sizes)
        valid = not_empty(boxes, rpn.min_box_size)
        scores = torch.where(valid, scores, _NO_SCORE)
        keep = self.nms(boxes, scores[:, None], rpn.nms_thresh, _NO_SCORE)[:, 0]
        return boxes, torch.where(keep, scores, _NO_SCORE)

    def classify(
        self, maps: dict[str, Tensor], proposals: Tensor, valid: Tensor, image_sizes: Tensor
    ) -> Detections:
        """Detections from the rows of proposals (N, P, 4) that are valid."""
        image, row = valid.nonzero(as_tuple=True)
        regions = proposals[image, row]
        probabilities, boxes = self._predict(maps, image, regions)
        # Back into rows by image, where suppression is by image and class.
        shape = (*proposals.shape[:2], probabilities.shape[1])
        scores = probabilities.new_zeros(shape).index_put((image, row), probabilities)
        boxes = proposals.new_zeros((*shape, 4)).index_put((image, row), boxes)
        boxes = clip(boxes.flatten(1, 2), image_sizes).view_as(boxes)
        return self._select(boxes.transpose(1, 2), scores.transpose(1, 2), image_sizes)

    def _predict(
        self, maps: dict[str, Tensor], image: Tensor, regions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (R, K) and boxes (R, K, 4) of regions (R, 4) of images (R,)."""
        heads = self.detector.roi_heads
        pooled = pool(heads.box_pooler, [maps[x] for x in heads.box_in_features], image, regions)
        predicted = heads.box_predictor(heads.box_head(pooled.to(self.dtype)))
        logits, deltas = (x[:-1].float() for x in predicted)
        boxes = heads.box_predictor.box2box_transform.apply_deltas(deltas, regions)
        sigmoid = getattr(heads.box_predictor, "use_sigmoid_ce", False)
        scores = (logits.sigmoid() if sigmoid else logits.softmax(dim=1))[:, :-1]
        return scores, boxes.unflatten(1, (-1, 4)).expand(-1, scores.shape[1], -1)

    def _select(self, boxes: Tensor, scores: Tensor, image_sizes: Tensor) -> Detections:
        """The best of boxes (N, K, P, 4) with scores (N, K, P)."""
        predictor = self.detector.roi_heads.box_predictor
        num_proposals = scores.shape[2]
        # Each class has its own boxes, so each is a set of its own.
        keep = self.nms(
            boxes.flatten(0, 1),
            scores.flatten(0, 1)[:, None],
            predictor.test_nms_thresh,
            predictor.test_score_thresh,
        )
        scores = torch.where(keep.view_as(scores), scores, 0.0).flatten(1)
        scores, index = best(scores, predictor.test_topk_per_image)
        boxes = gather_rows(boxes.flatten(1, 2), index)
        scores = torch.where(not_empty(boxes), scores, 0.0)
        return Detections(boxes, scores, index // num_proposals)

    def predict_masks(self, maps: dict[str, Tensor], found: Detections) -> Tensor:
        """The mask (N, D, M, M) of each detection's class."""
        heads = self.detector.roi_heads
        image, row = (found.scores > 0).nonzero(as_tuple=True)
        regions, levels = found.boxes[image, row], [maps[x] for x in heads.mask_in_features]
        pooled = pool(heads.mask_pooler, levels, image, regions).to(self.dtype)
        masks = heads.mask_head.layers(pooled)[:-1].float().sigmoid()
        if masks.shape[1] > 1:
            each = torch.arange(masks.shape[0], device=masks.device)
            masks = masks[each, found.classes[image, row]]
        else:
            masks = masks[:, 0]
        empty = masks.new_zeros((*found.scores.shape, *masks.shape[1:]))
        return empty.index_put((image, row), masks)
