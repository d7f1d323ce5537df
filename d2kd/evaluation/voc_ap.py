# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Average precision as Pascal VOC has computed it since 2010.

Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010, section 4.2; area under
the whole precision/recall curve (not 11 points), development kit 2010 and later.

Shape shorthand:
    D: detections of one class, all images
    G: ground-truth boxes of one class, all images
"""

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

__all__ = ["average_precision", "voc_average_precision"]


def average_precision(true_positive: np.ndarray, num_positives: int) -> float:
    """Area under the precision/recall curve, precision made monotonous from the right.

    Args:
        true_positive: (D,) bool, in order of falling score.
        num_positives: how many objects there were to find.

    Returns:
        AP in 0..1; NaN when there was nothing to find.
    """
    if num_positives == 0:
        return float("nan")
    hits = np.cumsum(true_positive)
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall rises by 1 / num_positives at each true positive and nowhere else.
    return float(precision[true_positive].sum() / num_positives)


def _best_matches(
    det_boxes: np.ndarray, det_images: np.ndarray, gt_boxes: np.ndarray, gt_images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For every detection the ground-truth box of its image that it overlaps most.

    Args:
        det_boxes, gt_boxes: (D, 4) and (G, 4) x0, y0, x1, y1 in pixels.
        det_images, gt_images: (D,) and (G,) image names.

    Returns:
        (D,) IoU, 0 where the image has no such box, and (D,) index into gt_boxes.
    """
    iou, index = np.zeros(len(det_boxes)), np.zeros(len(det_boxes), dtype=int)
    for image in np.intersect1d(det_images, gt_images):
        rows, columns = np.nonzero(det_images == image)[0], np.nonzero(gt_images == image)[0]
        boxes = [Boxes(torch.as_tensor(b).double()) for b in (det_boxes[rows], gt_boxes[columns])]
        values, best = pairwise_iou(*boxes).max(dim=1)
        iou[rows], index[rows] = values.numpy(), columns[best.numpy()]
    return iou, index


def voc_average_precision(
    det_boxes: np.ndarray,
    det_scores: np.ndarray,
    det_images: np.ndarray,
    gt_boxes: np.ndarray,
    gt_images: np.ndarray,
    gt_ignore: np.ndarray,
    threshold: float = 0.5,
) -> float:
    """AP of one class.

    A detection belongs to the box it overlaps most; the first one of a box is right, any further
    one wrong, even if it overlaps another free box. Those on boxes to ignore do not count.

    Args:
        det_boxes, det_scores, det_images: (D, 4) in pixels, (D,), (D,), in any order.
        gt_boxes, gt_images, gt_ignore: (G, 4), (G,), (G,) bool, "difficult" objects.
        threshold: least IoU of a right detection.

    Returns:
        AP in 0..1; NaN when every object is to be ignored, or there is none.
    """
    order = np.argsort(-det_scores, kind="stable")
    iou, index = _best_matches(det_boxes[order], det_images[order], gt_boxes, gt_images)
    matched = iou >= threshold
    if len(gt_boxes):
        counted = ~(matched & gt_ignore[index])
        matched, index = matched[counted], index[counted]
    first = np.zeros(len(matched), dtype=bool)
    rows = np.nonzero(matched)[0]
    first[rows[np.unique(index[rows], return_index=True)[1]]] = True
    return average_precision(first, int((~gt_ignore).sum()))
