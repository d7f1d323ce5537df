# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Masks against closed forms and against loops over every image, cell and box."""

import math

import numpy as np
import pytest
import torch

from d2kd.losses import MASK_REGISTRY, gaussian, register_mask, richness, uniform


def gaussian_by_loops(inputs, sigma2=2.0):
    """The formula, literally: numpy, one cell and one box at a time."""
    mask = np.zeros(inputs.size)
    for box, image in zip(inputs.boxes.numpy() / inputs.stride, inputs.image_index.tolist()):
        x0, y0 = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        w, h = max(box[2] - box[0], 1), max(box[3] - box[1], 1)
        for row in range(inputs.size[1]):
            for column in range(inputs.size[2]):
                dx, dy = column + 0.5 - x0, row + 0.5 - y0
                if -w / 2 <= dx < w / 2 and -h / 2 <= dy < h / 2:
                    exponent = dx**2 / (sigma2 * (w / 2) ** 2) + dy**2 / (sigma2 * (h / 2) ** 2)
                    mask[image, row, column] = max(mask[image, row, column], math.exp(-exponent))
    return mask


def test_uniform_is_one_everywhere(mask_input):
    mask = uniform(mask_input([], []))
    assert mask.shape == (2, 9, 9) and mask.dtype == torch.float32
    assert (mask == 1).all()


def test_gaussian_is_one_at_the_centre_and_zero_outside(mask_input):
    # Cells 1..7 of 9, centre on the centre of cell 4.
    mask = gaussian(mask_input([[4, 4, 32, 32]], [1]))
    assert mask[1, 4, 4] == 1
    assert mask[0].max() == 0
    assert mask[1, 0].max() == mask[1, 8].max() == mask[1, :, 0].max() == mask[1, :, 8].max() == 0
    assert (mask[1, 1:8, 1:8] > 0).all()
    torch.testing.assert_close(mask[1], mask[1].flip(0))
    torch.testing.assert_close(mask[1], mask[1].T)


def test_gaussian_falls_to_its_published_values_at_edge_and_corner(mask_input):
    # 1000 cells: cell centres come within 0.1 % of the box's border.
    mask = gaussian(mask_input([[0, 0, 1000, 1000]], [0], size=(1, 1000, 1000), stride=1))[0]
    assert mask[500, 0] == pytest.approx(math.exp(-0.5), abs=2e-3)  # 0.61
    assert mask[0, 0] == pytest.approx(math.exp(-1.0), abs=2e-3)  # 0.37
    wide = gaussian(
        mask_input([[0, 0, 1000, 1000]], [0], size=(1, 1000, 1000), stride=1), sigma2=4.0
    )[0]
    assert wide[500, 0] == pytest.approx(math.exp(-0.25), abs=2e-3)


def test_gaussian_boxes_overlap_by_maximum(mask_input):
    boxes = [[0, 0, 24, 24], [12, 8, 36, 36]]
    both = gaussian(mask_input(boxes, [0, 0]))
    first, second = (gaussian(mask_input([box], [0])) for box in boxes)
    assert ((first > 0) & (second > 0)).any()
    torch.testing.assert_close(both, torch.maximum(first, second))


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_gaussian_matches_loops_on_random_boxes(mask_input, stride):
    rng = np.random.default_rng(stride)
    low = rng.uniform(0, 100, (40, 2))
    boxes = np.concatenate((low, low + rng.uniform(0.5, 60, (40, 2))), axis=1)
    inputs = mask_input(
        boxes.tolist(), rng.integers(0, 3, 40).tolist(), size=(3, 160 // stride, 192 // stride)
    )._replace(stride=stride)
    np.testing.assert_allclose(
        gaussian(inputs, sigma2=1.5), gaussian_by_loops(inputs, 1.5), atol=1e-6
    )


@pytest.mark.parametrize(
    "box, cell",
    [
        ([9.0, 9.0, 9.5, 9.2], (2, 2)),
        ([7.75, 7.75, 8.25, 8.25], (1, 1)),  # across the border of four cells
        ([0.0, 0.0, 0.1, 0.1], (0, 0)),
        ([35.9, 35.9, 36.0, 36.0], (8, 8)),
        ([9.0, 0.0, 9.5, 36.0], (4, 2)),  # thin: one column
    ],
)
def test_gaussian_of_a_box_below_one_cell_marks_one_cell(mask_input, box, cell):
    mask = gaussian(mask_input([box], [0]))[0]
    thin = box[3] - box[1] > 4
    assert (mask > 0).sum() == (9 if thin else 1)
    assert mask[cell] >= math.exp(-1) - 1e-6
    assert mask[cell] == mask.max()


def test_gaussian_own_puts_each_box_on_the_level_of_its_size(mask_input):
    # sqrt(wh) below 112 -> 4 (clamped below), 112 -> 8, 224 -> 16, 448 -> 32, 1000 -> 32.
    sides, expected = [10, 111, 112, 223.9, 224, 448, 1000], [4, 4, 8, 8, 16, 32, 32]
    for side, own in zip(sides, expected):
        for stride in (4, 8, 16, 32):
            inputs = mask_input([[0, 0, side, side]], [0], size=(1, 32, 32), stride=stride)
            assert (gaussian(inputs, levels="own").sum() > 0) == (stride == own), (side, stride)
            if stride == own:
                torch.testing.assert_close(gaussian(inputs, levels="own"), gaussian(inputs))


def test_gaussian_own_uses_the_next_finer_level_where_one_is_left_out(mask_input):
    # A box of 224 pixels belongs to stride 16, which this pyramid has not.
    inputs = mask_input([[0, 0, 224, 224]], [0], strides=(8, 32), stride=8)
    assert gaussian(inputs, levels="own").sum() > 0
    assert gaussian(inputs._replace(stride=32), levels="own").sum() == 0


def test_gaussian_refuses_unknown_levels(mask_input):
    with pytest.raises(ValueError, match="'all' or 'own'"):
        gaussian(mask_input([], []), levels="mine")


def test_gaussian_without_boxes_is_zero(mask_input):
    for levels in ("all", "own"):
        mask = gaussian(mask_input([], []), levels=levels)
        assert mask.shape == (2, 9, 9) and (mask == 0).all()


def test_richness_is_the_best_class_probability(mask_input):
    logits = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    mask = richness(mask_input([], [], size=(2, 3, 5), logits=logits))
    expected = np.zeros((2, 3, 5))
    for n in range(2):
        for row in range(3):
            for column in range(5):
                values = logits[n, :, row, column].tolist()
                expected[n, row, column] = max(1 / (1 + math.exp(-v)) for v in values)
    np.testing.assert_allclose(mask, expected, atol=1e-12)


def test_richness_needs_dense_logits(mask_input):
    with pytest.raises(ValueError, match="dense logits on the level of stride 4"):
        richness(mask_input([], []))


def test_richness_is_float32_for_half_precision_logits(mask_input):
    logits = torch.randn(2, 6, 3, 5).to(torch.bfloat16)
    mask = richness(mask_input([], [], size=(2, 3, 5), logits=logits))
    assert mask.dtype == torch.float32
    torch.testing.assert_close(mask, logits.float().amax(dim=1).sigmoid())


def test_register_mask_keeps_what_the_losses_read(monkeypatch):
    monkeypatch.setattr(MASK_REGISTRY, "_obj_map", dict(MASK_REGISTRY))

    @register_mask(requires={"dense_logits"}, min_total=0.5)
    def everything_twice(inputs):
        return 2 * uniform(inputs)

    assert MASK_REGISTRY.get("everything_twice") is everything_twice
    assert everything_twice.requires == frozenset({"dense_logits"})
    assert everything_twice.min_total == 0.5
    assert uniform.requires == frozenset() and richness.requires == {"dense_logits"}
