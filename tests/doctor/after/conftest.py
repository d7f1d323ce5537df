# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Two trainings of two steps, one under a teacher."""

import pytest

from tests.common.helpers import distill_cfg, plain_cfg
from tests.doctor.after.toy_runs import declare, train

OPTIONS = ["SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "DISTILL.FEATURE.WEIGHT", 0.001]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, teacher_files):
    """(folder of a distilled run, folder of its baseline); not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    for name, cfg in (
        ("mine", distill_cfg(teacher_files, *OPTIONS)),
        ("mine_baseline", plain_cfg(*OPTIONS)),
    ):
        train(declare(cfg, folder / "data"), folder / name)
    return folder / "mine", folder / "mine_baseline"


@pytest.fixture(autouse=True)
def _clean(clean_catalogs):
    """Each test registers the sets of its runs."""
