# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A detector added by the recipe of d2kd.config.detectors is checked and distilled as others."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from d2kd.config.defaults import add_d2kd_config
from d2kd.config.detectors import DENSE_OUTPUTS, DETECTORS, Detector, register_detector
from d2kd.config.student import dump_student_config, student_config
from d2kd.data import num_classes_key
from d2kd.modeling import Distiller
from d2kd.modeling.paired_forward.registry import get_paired_forward
from d2kd.utils.errors import ConfigError, PairMismatchError
from tests.common.helpers import build_distiller, run
from tests.common.tiny_dense import dense_cfg, make_batch


class ToyDetector(RetinaNet):
    """RetinaNet whose number of classes and levels have keys of their own."""

    @classmethod
    def from_config(cls, cfg):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.TOY.NUM_CLASSES
        cfg.MODEL.RETINANET.IN_FEATURES = cfg.MODEL.TOY.IN_FEATURES
        return super().from_config(cfg)


def add_toy_config(cfg):
    cfg.MODEL.TOY = CfgNode({"NUM_CLASSES": 5, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"]})


TOY = Detector(
    name="ToyDetector",
    forward_pair="forward_pair_dense",
    outputs=DENSE_OUTPUTS,
    num_classes_key="MODEL.TOY.NUM_CLASSES",
    dense_levels_key="MODEL.TOY.IN_FEATURES",
    add_config=add_toy_config,
)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", dict(META_ARCH_REGISTRY))
    META_ARCH_REGISTRY.register(ToyDetector)
    before = dict(DETECTORS)
    register_detector(TOY)
    yield TOY
    DETECTORS.clear()
    DETECTORS.update(before)


def _student_cfg():
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_other_cfg(student_config(dense_cfg("RetinaNet")))
    cfg.MODEL.META_ARCHITECTURE = "ToyDetector"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RETINANET.NUM_CLASSES = 80  # of nothing: MODEL.TOY.NUM_CLASSES counts
    return cfg


def _distill_cfg(folder, *opts):
    """A student under a teacher of the same kind, whose keys ``opts`` change."""
    teacher = _student_cfg()
    teacher.merge_from_list(list(opts))
    (folder / "teacher.yaml").write_text(dump_student_config(student_config(teacher)))
    torch.manual_seed(1)
    torch.save({"model": build_model(teacher).state_dict()}, folder / "teacher.pth")
    cfg = _student_cfg()
    cfg.DISTILL.ENABLED = True
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(folder / "teacher.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "teacher.pth")
    return cfg


def test_it_is_distilled_under_every_loss(toy, tmp_path):
    cfg = _distill_cfg(tmp_path)
    cfg.DISTILL.FEATURE.MASK = "richness"
    losses = run(build_distiller(cfg), make_batch())
    assert set(losses) == {
        *("loss_cls", "loss_box_reg"),
        *(f"loss_distill_{name}" for name in ("feature", "cls", "reg")),
    }
    assert all(x.isfinite() for x in losses.values()) and losses["loss_distill_cls"] > 0


@pytest.mark.parametrize(
    "key, value",
    [("MODEL.TOY.NUM_CLASSES", 4), ("MODEL.TOY.IN_FEATURES", ["p3", "p4", "p5", "p7", "p6"])],
)
def test_it_is_checked_like_the_built_in_ones(toy, tmp_path, key, value):
    assert num_classes_key(_student_cfg()) == "MODEL.TOY.NUM_CLASSES"
    with pytest.raises(PairMismatchError, match=f"^{key} is .* for the student.*set {key} to"):
        Distiller(_distill_cfg(tmp_path, key, value))


def test_it_has_no_outputs_beyond_its_row(toy, tmp_path):
    cfg = _distill_cfg(tmp_path)
    cfg.DISTILL.REG.DISTANCE = "distribution_kl"
    with pytest.raises(ConfigError, match="ToyDetector has no box_bins: set DISTILL.REG.DISTANCE"):
        Distiller(cfg)


def test_it_keeps_its_keys_in_student_yaml(toy):
    cfg = _student_cfg()
    cfg.MODEL.TOY.NUM_CLASSES = 7
    assert student_config(cfg).MODEL.TOY.NUM_CLASSES == 7
    assert "TOY" not in student_config(dense_cfg("RetinaNet")).MODEL


def test_a_row_with_a_taken_name_or_without_its_function_is_refused(toy, monkeypatch):
    with pytest.raises(ConfigError, match="'ToyDetector' is registered twice"):
        register_detector(TOY)
    # Undone here: after the fixture, it would bring the row back for the tests that follow.
    with monkeypatch.context() as patch:
        patch.setitem(DETECTORS, "ToyDetector", Detector("ToyDetector", "forward_pair_toy"))
        with pytest.raises(ConfigError, match="'forward_pair_toy': register it with"):
            get_paired_forward(_student_cfg())
