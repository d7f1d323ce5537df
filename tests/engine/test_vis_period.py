# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""VIS_PERIOD: the storage gets the figure, and the training is the same with it and without."""

import numpy as np
import pytest
from detectron2.engine import HookBase

from d2kd.utils.rng_state import get_random_state
from tests.common.resumed_runs import differences, final_state, make_cfg, start


class Collector(HookBase):
    """Takes the images before the writers clear them, and the random streams of each step."""

    def __init__(self):
        self.images, self.streams = [], []

    def after_step(self):
        self.images += self.trainer.storage._vis_data
        self.trainer.storage.clear_images()
        self.streams.append(get_random_state())


@pytest.fixture
def train(teacher_files, train_set, tmp_path):
    def train(name, *opts):
        folder = tmp_path / name
        opts = ["DATASETS.TRAIN", (train_set,), "SOLVER.MAX_ITER", 3, *opts]
        trainer = start(make_cfg(teacher_files, folder, *opts), seed=3)
        collector = Collector()
        trainer.register_hooks([collector])
        trainer._hooks.insert(0, trainer._hooks.pop())
        trainer.train()
        return collector, final_state(folder)

    return train


def test_vis_period_draws_what_is_compared_and_changes_nothing(train):
    plain, expected = train("plain")
    drawn, found = train("drawn", "VIS_PERIOD", 2)
    assert not plain.images
    assert [(name, at) for name, _, at in drawn.images] == [
        ("distillation", 0),
        ("distillation", 2),
    ]
    for _, image, _ in drawn.images:
        assert image.dtype == np.uint8 and image.shape[0] == 3 and min(image.shape[1:]) > 500
        assert 1 < image.std(), "not blank"
    assert differences(drawn.streams, plain.streams) == []
    assert differences(found, expected) == []


def test_vis_period_draws_the_first_of_accumulated_batches(train):
    drawn, _ = train("steps", "VIS_PERIOD", 1, "SOLVER.ACCUMULATE_STEPS", 2)
    assert [at for _, _, at in drawn.images] == [0, 1, 2]


def test_vis_period_draws_nothing_once_no_teacher_runs(train):
    opts = ["DISTILL.SCHEDULE.NAME", "step", "DISTILL.SCHEDULE.STEPS", (0.5,)]
    opts += ["DISTILL.SCHEDULE.GAMMA", 0.0]
    drawn, _ = train("over", "VIS_PERIOD", 1, *opts)
    assert [at for _, _, at in drawn.images] == [0, 1]
