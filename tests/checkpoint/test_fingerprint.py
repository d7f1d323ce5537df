# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A run that is resumed with other keys: what can go on says what changed, the rest is refused."""

import copy

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

from d2kd.checkpoint.fingerprint import ConfigFingerprint
from d2kd.engine import DistillTrainer
from d2kd.utils.errors import ResumeError
from tests.common.helpers import TRAIN_SET, distill_cfg, plain_cfg, write_teacher

pytestmark = pytest.mark.usefixtures("train_set")


@pytest.fixture(scope="module")
def run(teacher_files, train_set, tmp_path_factory):
    """A folder with the checkpoint of one distilled iteration."""
    folder = tmp_path_factory.mktemp("run")
    _trainer(teacher_files, folder).train()
    return folder


def _trainer(teacher, folder, *opts):
    seed_all_rng(1)
    opts = ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 1, *opts]
    return DistillTrainer(distill_cfg(teacher, *opts) if teacher else plain_cfg(*opts))


def _resume(teacher, folder, *opts):
    trainer = _trainer(teacher, folder, *opts)
    trainer.resume_or_load(resume=True)
    return trainer


def _warnings(caplog):
    return [x.getMessage() for x in caplog.records if "with other keys" in x.getMessage()]


def test_the_same_keys_and_a_longer_run_are_not_warned_of(run, teacher_files, tmp_path, caplog):
    moved = tmp_path / "moved.pth"
    moved.write_bytes(teacher_files[1].read_bytes())
    opts = ["SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 4]
    _resume((teacher_files[0], moved), run, *opts, "MODEL.WEIGHTS", "elsewhere.pth")
    assert _warnings(caplog) == []


def test_keys_that_changed_are_listed_in_one_warning(run, teacher_files, caplog):
    """Another set of as many images, and other losses with the same adapters, fit in silence."""
    DatasetCatalog.register("of_equal_size", lambda: copy.deepcopy(DatasetCatalog.get(TRAIN_SET)))
    try:
        opts = ["DATASETS.TRAIN", ("of_equal_size",), "DISTILL.FEATURE.DISTANCE", "absolute"]
        opts += ["DISTILL.LOSSES", ["feature", "cls"], "DISTILL.CLS.WEIGHT", 2.0]
        _resume(teacher_files, run, *opts, "SOLVER.BASE_LR", 0.5)
    finally:
        DatasetCatalog.remove("of_equal_size")
    (text,) = _warnings(caplog)
    assert text.splitlines()[1:] == [
        "  DATASETS.TRAIN was ['tiny_train'], is ['of_equal_size']",
        "  DISTILL.CLS.WEIGHT was 1.0, is 2.0",
        "  DISTILL.FEATURE.DISTANCE was 'squared', is 'absolute'",
        "  DISTILL.LOSSES was ['feature', 'cls', 'reg'], is ['feature', 'cls']",
        "  SOLVER.BASE_LR was 0.0001, is 0.5",
    ]


def test_tuples_and_lists_are_alike_and_what_a_version_lacks_is_left_out(caplog):
    cfg = plain_cfg()
    cfg.DISTILL.MASKS.MINE = CfgNode({"SIZES": ((1, 2), 3)})
    state = ConfigFingerprint(cfg).state_dict()
    state["SOLVER.OF_ANOTHER_VERSION"] = 1
    del state["SOLVER.GAMMA"]
    cfg.DISTILL.MASKS.MINE.SIZES = [[1, 2], 3]
    ConfigFingerprint(cfg).load_state_dict(state)
    assert _warnings(caplog) == []
    cfg.DISTILL.MASKS.MINE.SIZES = [[1, 3], 3]
    ConfigFingerprint(cfg).load_state_dict(state)
    assert "MASKS.MINE.SIZES was [[1, 2], 3], is [[1, 3], 3]" in _warnings(caplog)[0]


@pytest.mark.parametrize(
    "opts, words",
    [
        (["SOLVER.OPTIMIZER", "ADAMW"], ["  SOLVER.OPTIMIZER was 'SGD', is 'ADAMW'"]),
        (
            ["DISTILL.LOSSES", ["cls"]],
            ["parameters in", "DISTILL.LOSSES was ['feature', 'cls', 'reg'], is ['cls']"],
        ),
        (
            ["MODEL.ROI_BOX_HEAD.FC_DIM", 32],
            [
                "4 tensors of 'model', first roi_heads.box_head.fc1.weight: (16, 144) there",
                "FC_DIM",
            ],
        ),
        (
            ["DISTILL.FEATURE.ADAPTER", "3x3"],
            [
                "5 tensors of 'distill_losses', first feature.adapters.p2.weight",
                "ADAPTER was 'auto",
            ],
        ),
        (["MODEL.ROI_BOX_HEAD.NUM_FC", 2], ["fc2.weight: absent there", "NUM_FC was 1, is 2"]),
        (["MODEL.BACKBONE.FREEZE_AT", 1], ["the optimizer: ", "FREEZE_AT was 0, is 1"]),
    ],
)
def test_what_does_not_fit_is_refused_by_key(run, teacher_files, opts, words):
    before = (run / "model_final.pth").read_bytes()
    trainer = _trainer(teacher_files, run, *opts)
    start = {k: v.clone() for k, v in trainer.checkpointer.model.state_dict().items()}
    with pytest.raises(ResumeError, match="another OUTPUT_DIR") as caught:
        trainer.resume_or_load(resume=True)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert (run / "model_final.pth").read_bytes() == before
    found = trainer.checkpointer.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in start.items()), "half loaded"


def test_half_precision_is_not_resumed_from_float32(run, teacher_files):
    trainer = _trainer(teacher_files, run)
    # As a run on a GPU has it: on a CPU the config itself is refused.
    trainer.checkpointer._config.values["SOLVER.AMP.ENABLED"] = True
    with pytest.raises(ResumeError, match="SOLVER.AMP.ENABLED was False, is True"):
        trainer.resume_or_load(resume=True)


def test_a_checkpoint_of_release_06_has_no_optimizer(tmp_path, caplog):
    _trainer(None, tmp_path).train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    for name in ("config", "run_state"):
        del saved[name]
    torch.save(saved, tmp_path / "model_final.pth")
    _resume(None, tmp_path)
    assert _warnings(caplog) == []
    del saved["trainer"]["_trainer"]
    torch.save(saved, tmp_path / "model_final.pth")
    with pytest.raises(ResumeError, match="holds no optimizer.*start again, from MODEL.WEIGHTS"):
        _resume(None, tmp_path)


def test_the_kind_of_run_is_asked_first(run, tmp_path):
    """A message about parameters would hide the reason."""
    with pytest.raises(ResumeError, match="set DISTILL.ENABLED True to resume that run"):
        _resume(None, run)
    _trainer(None, tmp_path / "out").train()
    teacher = write_teacher(tmp_path / "teacher")
    with pytest.raises(ResumeError, match="set DISTILL.ENABLED False to resume that run"):
        _resume(teacher, tmp_path / "out")
