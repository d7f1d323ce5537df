# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Toy records for the losses: small random maps and regions, no detector."""

import pytest
import torch

from d2kd.structures import DetectorOutputs, DistillStep, LevelAnchors, MaskInput

SIZES = {"p3": (7, 9), "p4": (4, 5), "p5": (1, 2)}
# Of a dense head: 6 channels of logits are 2 anchors of 3 classes.
ANCHORS = {name: 2 * height * width for name, (height, width) in SIZES.items()}
STRIDES = {"p3": 8, "p4": 16, "p5": 32}


class ToyCoder:
    """Deltas are pixels added to the region; the box loss is the absolute difference."""

    def decode(self, deltas, regions):
        return regions + deltas

    def loss(self, deltas, target_deltas, regions):
        return (deltas - target_deltas).abs().sum(dim=1)


def random_outputs(generator, dtype, *, channels, logits, regions, requires_grad):
    """One detector's answers; ``logits`` is the number of columns."""

    def random(*size, scale=1.0):
        values = torch.randn(*size, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_(requires_grad)

    return DetectorOutputs(
        features={name: random(2, channels, *size) for name, size in SIZES.items()},
        dense_logits={name: random(2, 6, *size) for name, size in SIZES.items()},
        logits=random(regions, logits),
        deltas=random(regions, 4, scale=3.0),
        box_bins=random(regions, 4, 5),
        dense_deltas={name: random(2, count, 4, scale=0.7) for name, count in ANCHORS.items()},
        dense_box_bins={name: random(2, count, 4, 5) for name, count in ANCHORS.items()},
    )


@pytest.fixture
def make_step():
    """A function that builds a DistillStep of two images with ``regions`` and ``boxes``."""

    def make(*, regions=6, boxes=4, dtype=torch.float64, activation="softmax", seed=0):
        generator = torch.Generator().manual_seed(seed)

        def random_boxes(count):
            low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30
            size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30 + 4
            return torch.cat((low, low + size), dim=1)

        truth, proposals = random_boxes(boxes), random_boxes(regions)
        jitter = torch.randn(regions, 4, generator=generator, dtype=torch.float64)
        shape = dict(channels=3, logits=4, regions=regions)
        return DistillStep(
            student=random_outputs(generator, dtype, requires_grad=True, **shape),
            teacher=random_outputs(generator, dtype, requires_grad=False, **shape),
            num_images=2,
            strides=STRIDES,
            gt_boxes=truth,
            gt_image=torch.arange(boxes) % 2,
            regions=proposals,
            labels=torch.zeros(regions, dtype=torch.int64),
            region_gt_boxes=proposals + 2 * jitter,
            activation=activation,
            box_coder=ToyCoder(),
            anchors={
                name: LevelAnchors(
                    random_boxes(count), torch.rand(2, count, generator=generator) > 0.2
                )
                for name, count in ANCHORS.items()
            },
        )

    return make


@pytest.fixture
def mask_input():
    """A function that builds what a mask of one level sees, from lists of boxes and images."""

    def make(boxes, images, *, size=(2, 9, 9), stride=4, strides=(4, 8, 16, 32), logits=None):
        boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        images = torch.tensor(images, dtype=torch.int64)
        return MaskInput(size, stride, strides, boxes, images, logits)

    return make
