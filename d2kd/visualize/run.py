# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""From a config to a figure of each image: build the pair, run it, load a checkpoint, run again."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from ..checkpoint.init_from_teacher import init_from_teacher
from ..checkpoint.student_weights import load_student_at, load_student_start
from ..config.load import load_config
from ..data import (
    check_num_classes,
    check_registered_sets,
    class_names,
    register_custom_datasets,
)
from ..modeling import Distiller
from ..utils.device import device_or_cpu
from ..utils.errors import ConfigError
from .detections import kept_tensors
from .figure import draw_figure
from .image_view import ImageView, StudentView, view_image, view_student
from .samples import draw_samples

__all__ = ["read_config", "view_images", "visualize"]

logger = logging.getLogger(__name__)

Samples = list[dict[str, Any]]


def read_config(path: str, options: Sequence[str] = ()) -> CfgNode:
    """The config as train_net.py reads it, on the CPU if there is no GPU.

    Raises:
        ConfigError: it cannot be used, or distils nothing.
    """
    cfg = load_config(path, options)
    if not cfg.DISTILL.ENABLED:
        raise ConfigError(
            f"{path} has DISTILL.ENABLED False, so there is no teacher to compare with: give a "
            "config that distils, or set DISTILL.ENABLED to True and the keys of DISTILL.TEACHER"
        )
    cfg.MODEL.DEVICE, changed = device_or_cpu(cfg.MODEL.DEVICE)
    if changed:
        logger.warning(changed)
    # Maps of these few images are not worth keeping, and nothing is evaluated.
    cfg.DISTILL.TEACHER.CACHE, cfg.DATASETS.TEST = "", ()
    cfg.freeze()
    return cfg


def visualize(
    config_file: str,
    options: Sequence[str],
    output: Path,
    *,
    images: int = 4,
    seed: int | None = None,
    weights: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write one PNG for each of a few training images.

    Args:
        config_file, options: as given to train_net.py.
        output: the folder; created if it is not there.
        images: how many.
        seed: of the images and their augmentation; None for the config's, or 0.
        weights: a checkpoint of a run of this config, which is drawn beside the start.
        say: called with the path of each file once it is written.

    Raises:
        D2kdError: the config, the data, the weights or the folder cannot be used.
    """
    cfg = read_config(config_file, options)
    _prepare(output)
    seed = max(cfg.SEED, 0) if seed is None else seed
    written = []
    for i, view in enumerate(view_images(cfg, images, seed, weights)):
        name = f"{i:03}_{Path(view.title).stem}.png"
        draw_figure(view).savefig(output / name)
        written.append(output / name)
        say(str(output / name))
    return written


def _prepare(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        writable = os.access(output, os.W_OK)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be a folder for pictures: {error}") from error
    if not writable:
        raise ConfigError(f"--output {output} cannot be written: choose another folder")


def view_images(cfg: CfgNode, count: int, seed: int, weights: str | None) -> Iterator[ImageView]:
    """Look at training images with the student at its start, and at a checkpoint.

    Args:
        cfg: of ``read_config``.
        count, seed, weights: ``images``, ``seed`` and ``weights`` of ``visualize``.
    """
    register_custom_datasets(cfg)
    check_registered_sets(cfg)
    check_num_classes(cfg)
    seed_all_rng(seed)
    samples = draw_samples(cfg, count, seed)
    if len(samples) < count:
        logger.warning("There are only %d images with a box in DATASETS.TRAIN", len(samples))
    # As a training with this seed builds it, whatever the images have drawn.
    seed_all_rng(seed)
    distiller = Distiller(cfg).train()
    load_student_start(cfg, distiller.student)
    if cfg.DISTILL.STUDENT.INHERIT:
        teacher = distiller.teacher.model
        init_from_teacher(distiller.student, teacher, cfg.DISTILL.STUDENT.INHERIT)
    students = [_view_all("at its start", distiller, samples, cfg, seed)]
    if weights:
        _load(weights, distiller)
        students.append(_view_all(f"at {Path(weights).name}", distiller, samples, cfg, seed))
    strides = {x: spec.stride for x, spec in distiller.student.backbone.output_shape().items()}
    known = {"image_format": cfg.INPUT.FORMAT, "classes": class_names(cfg), "strides": strides}
    for i, sample in enumerate(samples):
        title = Path(sample.get("file_name", f"image {i}")).name
        yield view_image(title, distiller, sample, [views[i] for views in students], **known)


def _load(weights: str, distiller: Distiller) -> None:
    has_adapters = load_student_at(weights, distiller.student, distiller.distill_losses)
    if not has_adapters and list(distiller.distill_losses.parameters()):
        logger.warning(
            "%s has no adapters: theirs are random. Choose a checkpoint that d2kd wrote", weights
        )


@torch.no_grad()
def _view_all(
    name: str, distiller: Distiller, samples: Samples, cfg: CfgNode, seed: int
) -> list[StudentView]:
    """The student as it is now on every image, in batches as large as those of the training."""
    found: list[StudentView] = []
    size = cfg.SOLVER.IMS_PER_BATCH
    for batch in (samples[i : i + size] for i in range(0, len(samples), size)):
        # Both times sample their proposals from the same stream.
        seed_all_rng(seed)
        with kept_tensors(distiller.student), EventStorage():
            _, step = distiller.forward_pair(
                distiller.student, distiller.teacher, batch, distiller.required
            )
        found += [view_student(name, distiller, batch, step, i) for i in range(len(batch))]
    return found
