# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""ATSS on cases made by hand and against a slow literal reference."""

import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

from d2kd.modeling.meta_arch.gfl.atss import atss_match

STRIDES = (8, 16, 32)


def _anchors(side=64, strides=STRIDES, scale=8, offset=0.5):
    generator = DefaultAnchorGenerator(
        sizes=[[scale * s] for s in strides],
        aspect_ratios=[[1.0]],
        strides=list(strides),
        offset=offset,
    )
    return generator([torch.zeros(1, 1, math.ceil(side / s), math.ceil(side / s)) for s in strides])


def _match(boxes, anchors=None, topk=9):
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return atss_match(anchors or _anchors(), boxes, topk)


def _iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def _centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _slow_atss(levels, boxes, topk):
    """Algorithm 1 of the paper in plain Python, an anchor and a box at a time."""
    every_anchor = [anchor for level in levels for anchor in level]
    best = [(-1.0, -1)] * len(every_anchor)  # IoU and box of each anchor
    for b, box in enumerate(boxes):
        candidates, first = [], 0
        for level in levels:
            distance = [math.dist(_centre(anchor), _centre(box)) for anchor in level]
            order = sorted(range(len(level)), key=lambda i: distance[i])
            candidates += [first + i for i in order[:topk]]
            first += len(level)
        ious = [_iou(every_anchor[i], box) for i in candidates]
        mean = sum(ious) / len(ious)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in ious) / (len(ious) - 1))
        for i, iou in zip(candidates, ious):
            x, y = _centre(every_anchor[i])
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if iou >= mean + deviation and inside and iou > best[i][0]:
                best[i] = (iou, b)
    return [b for _, b in best]


@pytest.mark.parametrize("seed", range(20))
def test_random_boxes_match_as_in_the_literal_reference(seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 15, (1,), generator=generator))
    corner = torch.rand(count, 2, generator=generator) * 100
    size = torch.rand(count, 2, generator=generator) ** 2 * 120 + 4
    boxes = torch.cat([corner, (corner + size).clamp(max=128)], dim=1)
    boxes[0] = torch.tensor([12.0, 14.0, 81.0, 73.0])  # one at least that finds anchors
    anchors = _anchors(128, offset=(0.0, 0.5)[seed % 2])
    levels = [level.tensor.double().tolist() for level in anchors]
    expected = _slow_atss(levels, boxes.double().tolist(), topk=9)
    assert max(expected) >= 0
    assert atss_match(anchors, Boxes(boxes)).tolist() == expected


def test_no_boxes():
    matched = _match([])
    assert matched.dtype == torch.int64
    assert matched.tolist() == [-1] * (64 + 16 + 4)


def test_a_box_as_large_as_an_anchor_gets_it_and_its_neighbours():
    # 64 x 64 around the middle of the image, which is a corner of four cells of the finest level.
    matched = _match([[0, 0, 64, 64]])
    grid = matched[:64].view(8, 8)
    assert (grid[3:5, 3:5] == 0).all()
    assert (grid[[0, 0, 7, 7], [0, 7, 0, 7]] == -1).all()
    assert (matched[64:] == -1).all()


def test_a_box_smaller_than_a_cell_gets_the_one_anchor_whose_centre_it_holds():
    # Centres lie at 4, 12, 20, ... on the finest level.
    matched = _match([[11, 11, 14, 14]])
    assert (matched == 0).nonzero().flatten().tolist() == [8 + 1]


def test_a_box_without_an_anchor_centre_gets_none():
    assert (_match([[6, 6, 10, 10]]) == -1).all()
    assert (_match([[20, 20, 20, 20]]) == -1).all()


def test_more_boxes_than_points():
    anchors = _anchors(32, strides=(16,), scale=2)  # 4 points
    boxes = [[0, 0, 16 + 2 * i, 16 + 2 * i] for i in range(8)]
    matched = _match(boxes, anchors)
    levels = [anchors[0].tensor.tolist()]
    assert matched.tolist() == _slow_atss(levels, boxes, topk=9)
    assert len(matched) == 4 and matched[0] >= 0


def test_the_higher_iou_wins_an_anchor_that_two_boxes_want():
    matched = _match([[0, 0, 40, 40], [0, 0, 64, 64]])
    centre_of_first = 2 * 8 + 2
    alone = _match([[0, 0, 40, 40]])[centre_of_first], _match([[0, 0, 64, 64]])[3 * 8 + 3]
    assert alone == (0, 0)
    # The anchor at (28, 28) reaches IoU 0.78 with the larger box and 0.39 with the smaller.
    assert matched[3 * 8 + 3] == 1


def test_equal_boxes_go_to_the_first():
    box = [[5, 5, 45, 45]]
    assert torch.equal(_match(box * 3), _match(box))
    assert (_match(box) == 0).any()


def test_equal_distances_go_to_the_earlier_anchor():
    # Four centres are equally far from the box's, and only one may be a candidate.
    anchors = _anchors(64, strides=(8,))
    matched = _match([[0, 0, 64, 64]], anchors, topk=1)
    assert (matched == 0).nonzero().flatten().tolist() == [3 * 8 + 3]


def test_memory_grows_with_boxes_times_anchors_only():
    # 100 boxes at 800 x 1333: no tensor may hold more than boxes x anchors x 2 coordinates.
    strides = (8, 16, 32, 64, 128)
    generator = DefaultAnchorGenerator(
        sizes=[[8 * s] for s in strides], aspect_ratios=[[1.0]], strides=list(strides), offset=0.0
    )
    anchors = generator([torch.zeros(1, 1, -(-800 // s), -(-1344 // s)) for s in strides])
    corner = torch.rand(100, 2) * 600
    boxes = Boxes(torch.cat([corner, corner + 10 + torch.rand(100, 2) * 200], dim=1))
    with _LargestTensor() as largest:
        matched = atss_match(anchors, boxes)
    assert len(matched.unique()) > 80
    assert largest.numel <= 2 * len(boxes) * len(matched)


class _LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result
