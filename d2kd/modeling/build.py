# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Building the two detectors: the student from its config, the teacher from its own."""

import os

import torch
from detectron2.config import CfgNode
from detectron2.model_zoo import get_checkpoint_url, get_config_file
from torch import nn

from ..checkpoint.weights import load_weights_strict, resolve_weights
from ..config.load import merge_file
from ..config.timm import forget_start
from ..config.unset_keys import refuse_unset_keys
from ..config.user_modules import default_config
from ..model_zoo import find_config_file
from ..utils.errors import ConfigError, PairMismatchError, WeightsError
from ..utils.files import sha256
from .compatibility import check_backbone
from .lazy_teacher import build_lazy_model, is_lazy, lazy_weights, read_lazy_config
from .parts import build_detector, check_parts
from .teacher import FrozenTeacher
from .teacher_cache.build import build_teacher_cache

__all__ = [
    "build_student",
    "build_teacher",
    "build_teacher_model",
    "check_parts",
    "load_teacher",
    "read_teacher_config",
]


def build_student(cfg: CfgNode) -> nn.Module:
    """The student of ``cfg.MODEL``, as plain Detectron2 builds it.

    Raises:
        ConfigError: its parts have unknown names or do not fit each other.
        PairMismatchError: it has no backbone.
    """
    student = build_detector(cfg)
    check_backbone(student, "the student's")
    return student


def read_teacher_config(cfg: CfgNode) -> CfgNode:
    """The teacher's own config, with MODEL.WEIGHTS resolved and on the student's device.

    Raises:
        ConfigError: DISTILL.TEACHER.CONFIG_FILE is neither a file nor a model-zoo name, or the
            LazyConfig file that it names fails.
        WeightsError: the model zoo has no weights for it.
    """
    name = cfg.DISTILL.TEACHER.CONFIG_FILE
    if not name:
        raise ConfigError(
            "DISTILL.TEACHER.CONFIG_FILE is empty: set it to a model-zoo name "
            "('COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml') or to the path of a yaml or .py file"
        )
    own = os.path.isfile(name)
    path = name if own else _find_in_zoo(name)
    lazy = path.endswith(".py")
    teacher_cfg = read_lazy_config(path) if lazy else _read_yaml(path, trusted=not own)
    found = cfg.DISTILL.TEACHER.WEIGHTS or (lazy and lazy_weights(name, path))
    teacher_cfg.MODEL.WEIGHTS = found or _zoo_weights(name)
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    forget_start(teacher_cfg)
    return teacher_cfg


def _read_yaml(path: str, trusted: bool) -> CfgNode:
    """A user's file may not run code; a file of the model zoos may."""
    named_by, teacher_cfg = "DISTILL.TEACHER.CONFIG_FILE", default_config()
    merge_file(teacher_cfg, path, named_by, trusted)
    refuse_unset_keys(teacher_cfg, f"{named_by} {path}")
    return teacher_cfg


def _find_in_zoo(name: str) -> str:
    """d2kd's own config of that name, or Detectron2's."""
    try:
        return find_config_file(name) or get_config_file(name)
    except RuntimeError as error:
        raise ConfigError(
            f"DISTILL.TEACHER.CONFIG_FILE {name!r} is neither a file (seen from {os.getcwd()}) nor "
            "the name of a config in d2kd's or Detectron2's model zoo: set it to one of these"
        ) from error


def _zoo_weights(name: str) -> str:
    try:
        return get_checkpoint_url(name)
    except RuntimeError as error:
        raise WeightsError(
            f"there are no model-zoo weights for {name!r}: set DISTILL.TEACHER.WEIGHTS to the "
            "path, URL or detectron2:// address of the teacher's checkpoint"
        ) from error


def build_teacher_model(teacher_cfg: CfgNode) -> nn.Module:
    """The teacher's detector with random weights, from its yaml's keys or its LazyConfig file."""
    if is_lazy(teacher_cfg):
        return build_lazy_model(teacher_cfg)
    return build_detector(teacher_cfg, "the teacher's")


def build_teacher(
    teacher_cfg: CfgNode,
    student_format: str,
    *,
    layout: str = "channels_first",
    compiled: bool = False,
    precision: str = "student",
    cached_by: CfgNode | None = None,
) -> FrozenTeacher:
    """Build the teacher and load every one of its weights, or stop.

    Args:
        teacher_cfg: from ``read_teacher_config``.
        student_format: INPUT.FORMAT in which the batches are read.
        layout, compiled, precision: of ``FrozenTeacher``.
        cached_by: the student's config, if its DISTILL.TEACHER.CACHE is to be used.

    Raises:
        WeightsError: the weights are not there, or a weight of the teacher is missing in the file
            or has another shape.
        PairMismatchError: the teacher's INPUT.FORMAT cannot be made from the student's, or it has
            no backbone.
    """
    formats = {student_format, teacher_cfg.INPUT.FORMAT}
    if len(formats) > 1 and formats != {"RGB", "BGR"}:
        raise PairMismatchError(
            f"the teacher reads {teacher_cfg.INPUT.FORMAT} images and the student "
            f"{student_format}: set INPUT.FORMAT to {teacher_cfg.INPUT.FORMAT!r}"
        )
    weights = teacher_cfg.MODEL.WEIGHTS
    path = resolve_weights(weights, "DISTILL.TEACHER.WEIGHTS")
    # Of the very file that is read next: it may be replaced while the student trains.
    fingerprint = {"weights": weights, "sha256": sha256(path)}
    model = build_teacher_model(teacher_cfg)
    check_backbone(model, "the teacher's")
    if not (hasattr(model, "preprocess_image") or hasattr(model, "pixel_mean")):
        raise PairMismatchError(
            f"the teacher's {type(model).__name__} has neither preprocess_image(batch), as "
            "GeneralizedRCNN, nor pixel_mean and pixel_std: its images cannot be prepared"
        )
    loaded = load_weights_strict(model, weights, path, "teacher")
    cache = None
    if cached_by is not None:
        cache = build_teacher_cache(cached_by, teacher_cfg, model, fingerprint["sha256"])
    return FrozenTeacher(
        model,
        swap_channels=len(formats) > 1,
        layout=layout,
        compiled=compiled,
        precision=precision,
        fingerprint=fingerprint,
        classes=loaded.classes,
        cache=cache,
    )


def load_teacher(
    config_file: str,
    weights: str = "",
    *,
    device: str = "cpu",
    input_format: str = "BGR",
    layout: str = "auto",
    compiled: bool = False,
    precision: str = "student",
) -> FrozenTeacher:
    """A teacher by the name of its config, for ``Distiller.compose``.

    Args:
        config_file, weights: as DISTILL.TEACHER.CONFIG_FILE and WEIGHTS.
        device: the student's.
        input_format: order of channels of the batches.
        layout, compiled, precision: of ``FrozenTeacher``.

    Raises:
        ConfigError, WeightsError, PairMismatchError: as ``read_teacher_config`` and
            ``build_teacher``.
    """
    cfg = default_config()
    cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.WEIGHTS = config_file, weights
    cfg.MODEL.DEVICE = device
    with torch.random.fork_rng(devices=[]):
        return build_teacher(
            read_teacher_config(cfg),
            input_format,
            layout=layout,
            compiled=compiled,
            precision=precision,
        )
