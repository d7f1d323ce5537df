# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectron2's dense detectors, from tensors to tensors.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level; K: foreground classes
    A: anchors of a level; T: candidates of an image; D: detections of an image, at most
"""

from collections.abc import Callable

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from torch import Tensor, nn

from ...config.detectors import detector_of
from ...modeling.meta_arch.gfl.losses import expected_distance
from .candidates import Detections, Nms, best, clip, gather_rows, not_empty, prepare_images

__all__ = ["DENSE_READERS", "TensorDenseDetector"]

_Levels = list[Tensor]


def _read_retinanet(maps: tuple[_Levels, ...], model: DenseDetector) -> tuple[_Levels, _Levels]:
    logits, deltas = maps
    scores = [permute_to_N_HWA_K(x, model.num_classes).sigmoid() for x in logits]
    return scores, [permute_to_N_HWA_K(x, 4) for x in deltas]


def _read_fcos(maps: tuple[_Levels, ...], model: DenseDetector) -> tuple[_Levels, _Levels]:
    scores, deltas = _read_retinanet(maps[:2], model)
    centerness = [permute_to_N_HWA_K(x, 1).sigmoid() for x in maps[2]]
    return [(x * y).sqrt() for x, y in zip(scores, centerness)], deltas


def _read_gfl(maps: tuple[_Levels, ...], model: DenseDetector) -> tuple[_Levels, _Levels]:
    logits, bins = maps
    scores = [permute_to_N_HWA_K(x, model.num_classes).sigmoid() for x in logits]
    rows = [permute_to_N_HWA_K(x, 4 * model.head.num_bins).unflatten(2, (4, -1)) for x in bins]
    return scores, [expected_distance(x) for x in rows]


# Detector -> what makes scores (N, A, K) and deltas (N, A, 4) of its head's maps, level by level.
DENSE_READERS: dict[str, Callable] = {
    "RetinaNet": _read_retinanet,
    "FCOS": _read_fcos,
    "GFL": _read_gfl,
}


class TensorDenseDetector(nn.Module):
    """A dense detector's inference, with its own parts, for any number of images."""

    def __init__(self, detector: DenseDetector, nms: Nms, dtype: torch.dtype = torch.float32):
        """
        Args:
            detector: in eval mode; backbone and head are in ``dtype``.
            nms: ``keep_by_nms``, or the same in another form.
            dtype: that backbone and head compute in; the rest is float32.
        """
        super().__init__()
        self.detector = detector
        self.read = DENSE_READERS[detector_of(detector).name]
        self.nms = nms
        self.dtype = dtype

    def forward(self, images: Tensor, image_sizes: Tensor) -> Detections:
        """Detect.

        Args:
            images, image_sizes: see ``prepare_images``.
        """
        model = self.detector
        divisor = model.backbone.size_divisibility
        x = prepare_images(images, image_sizes, model.pixel_mean, model.pixel_std, divisor)
        found = model.backbone(x.to(self.dtype))
        features = [found[name] for name in model.head_in_features]
        maps = [[x.float() for x in levels] for levels in model.head(features)]
        scores, deltas = self.read(maps, model)
        anchors = [x.tensor for x in model.anchor_generator(features)]
        levels = [self._candidates(*level) for level in zip(scores, deltas, anchors)]
        boxes, best_scores, classes = (torch.cat(x, dim=1) for x in zip(*levels))
        return self._select(boxes, best_scores, classes, image_sizes)

    def _candidates(self, scores: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        """The best (anchor, class) pairs of a level: boxes (N, T, 4), scores and classes (N, T)."""
        model = self.detector
        num_classes = scores.shape[2]
        found, index = best(scores.flatten(1), model.test_topk_candidates)
        # A pair's index is its anchor's times the number of classes, plus its class.
        anchor = index // num_classes
        rows = gather_rows(deltas, anchor)
        boxes = model.box2box_transform.apply_deltas(rows.flatten(0, 1), anchors[anchor.flatten()])
        return boxes.view_as(rows), found, index - anchor * num_classes

    def _select(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, image_sizes: Tensor
    ) -> Detections:
        """Suppress within each class, and keep the best of each image."""
        model = self.detector
        every = torch.arange(model.num_classes, device=classes.device)[None, :, None]
        by_class = torch.where(classes[:, None] == every, scores[:, None], 0.0)  # (N, K, T)
        keep = self.nms(boxes, by_class, model.test_nms_thresh, model.test_score_thresh)
        scores = torch.where(keep.any(dim=1), scores, 0.0)
        scores, index = best(scores, model.max_detections_per_image)
        boxes = clip(gather_rows(boxes, index), image_sizes)
        scores = torch.where(not_empty(boxes), scores, 0.0)
        return Detections(boxes, scores, classes.gather(1, index))
