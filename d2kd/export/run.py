# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""An export from beginning to end: write the file, then prove that it is right."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn

from ..data import register_custom_datasets
from ..utils.errors import ConfigError
from ..utils.files import atomic_write
from .accuracy import measure_ap
from .agreement import Agreement, compare
from .graph.build import check_exportable
from .images import read_images, registered_sets
from .latency import measure_latency
from .metadata import describe
from .packages import need_package
from .quantization import quantize
from .runners import ExportedDetector, open_exported
from .shape import InputShape
from .sources import Student, load_configs, load_student, load_teacher
from .tolerance import TOLERANCES, Tolerance, check_agreement
from .writers import write

__all__ = ["export"]

Say = Callable[[str], object]


def export(args: Namespace, say: Say) -> dict[str, Any]:
    """Write ``args.output``, compare it with PyTorch, and measure it.

    Args:
        args: see ``parse_args``.
        say: called with each line of the report as soon as it is known.

    Returns:
        dict: "agreement", "ap" by set and detector, "latency" by detector, "bytes".

    Raises:
        D2kdError: something cannot be read or exported.
        ExportError: the file differs from PyTorch by more than is allowed. It stays, to be looked
            at.
    """
    torch.set_num_threads(args.threads)
    cfg, run = load_configs(args.config_file, args.opts)
    register_custom_datasets(cfg)
    student = load_student(cfg, args.weights)
    check_exportable(cfg, student.model)
    shape = InputShape(args.batch, tuple(args.size) if args.size else None)
    _check_options(args)
    _write(args, cfg, student, shape)
    result: dict[str, Any] = {"bytes": args.output.stat().st_size}
    size = f"{result['bytes'] / 1e6:.1f} MB"
    say(f"{args.output}: {args.precision}, {size}, from {student.weights}")
    exported = open_exported(args.output, shape, args.threads)
    detectors = {"student": student.model, "exported": exported}
    if args.images:
        images = read_images(cfg, ("TEST", "TRAIN"), args.images, "compare the file on")
        result["agreement"] = _agree(args, cfg, detectors, images, say)
    result["ap"] = _evaluate(args, cfg, detectors, say)
    if args.images:
        result["latency"] = _time(args, run, detectors, images, say)
    return result


def _check_options(args: Namespace) -> None:
    """Refuse what would fail only after minutes."""
    if args.precision == "int8" and args.output.suffix != ".onnx":
        raise ConfigError(f"--precision int8 is for .onnx alone: --output is {args.output}")
    if args.output.suffix == ".onnx":
        for package in ("onnx", "onnxruntime"):
            need_package(package)


def _write(args: Namespace, cfg: CfgNode, student: Student, shape: InputShape) -> None:
    """Write the file; int8 is made of a float32 file."""
    metadata = describe(cfg, student.classes, args.precision)
    if args.precision != "int8":
        write(student.model, args.output, shape, args.precision == "float16", metadata)
        return
    count, what = args.calibration_images, "calibrate int8 on"
    images = [x["image"] for x in read_images(cfg, ("TRAIN",), count, what)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        write(student.model, source, shape, False, metadata)
        quantize(source, target, images, shape)
        with atomic_write(str(args.output), "wb") as file:
            file.write(target.read_bytes())


def _agree(
    args: Namespace, cfg: CfgNode, detectors: dict[str, Any], images: list[dict], say: Say
) -> Agreement:
    """Compare student and file on the resized images, each alone and the first two together."""
    exported = detectors["exported"]
    # Without "height" and "width" boxes stay in pixels of the resized image.
    inputs = [[{"image": x["image"]}] for x in images]
    together = exported.shape.batch != 1 and len(images) > 1
    if together:
        inputs.append([*inputs[0], *inputs[1]])
    expected, found = [], []
    with torch.no_grad():
        for batch in inputs:
            expected += _eager(detectors["student"], batch, exported.shape)
            found += [x["instances"] for x in exported(batch)]
    threshold = _score_threshold(detectors["student"])
    result = compare(expected, found, threshold, cfg.TEST.DETECTIONS_PER_IMAGE)
    for line in _describe(result, len(images), together):
        say(line)
    default = TOLERANCES[args.precision]
    box, score = args.max_box_difference, args.max_score_difference
    allowed = Tolerance(
        default.of, default.box if box is None else box, default.score if score is None else score
    )
    check_agreement(result, allowed, str(args.output))
    return result


def _describe(x: Agreement, count: int, together: bool) -> list[str]:
    batch = " and the first two together" if together else ""
    masks = f"; masks: 1 - IoU at most {x.largest_mask:.3g}" if x.largest_mask else ""
    lines = [
        f"compared with PyTorch on {count} images, each alone{batch}: {x.detections} detections, "
        f"{x.unmatched} without their like",
        f"  largest difference: box {x.largest_box:.3g} px, score {x.largest_score:.3g}{masks}",
        f"  mean difference:    box {x.mean_box:.3g} px, score {x.mean_score:.3g}",
    ]
    if not x.detections:
        lines.append("  WARNING: nothing was detected, so this says little: try other --images")
    return lines


def _eager(model: nn.Module, batch: list[dict], shape: InputShape) -> list[Instances]:
    """The student's detections; where the file's canvas is fixed, on as large a canvas."""
    blank = [{"image": torch.zeros(3, *shape.size)}] if shape.size else []
    return [x["instances"] for x in model([*batch, *blank])[: len(batch)]]


def _score_threshold(model: nn.Module) -> float:
    if hasattr(model, "roi_heads"):
        return model.roi_heads.box_predictor.test_score_thresh
    return model.test_score_thresh


def _evaluate(
    args: Namespace, cfg: CfgNode, detectors: dict[str, Any], say: Say
) -> dict[str, dict[str, float]]:
    if not args.eval_images:
        return {}
    result = {}
    for name in registered_sets(cfg, "TEST"):
        found = result[name] = measure_ap(cfg, name, detectors, args.eval_images)
        values = ", ".join(f"{x} {ap:.2f}" for x, ap in found.items())
        say(f"AP on up to {args.eval_images} images of {name}: {values}")
    if not result:
        say("AP: none, DATASETS.TEST names no set that is known here")
    return result


def _time(
    args: Namespace,
    run: CfgNode,
    detectors: dict[str, nn.Module | ExportedDetector],
    images: Sequence[dict],
    say: Say,
) -> dict[str, dict[str, float]]:
    if not args.no_teacher:
        teacher, why = load_teacher(run)
        if teacher is None:
            say(f"the teacher is not timed: {why}")
        else:
            detectors = {"teacher": teacher, **detectors}
    result = {}
    for name, sample in measure_latency(detectors, list(images), args.rounds).items():
        result[name] = {"median": sample.median, "p90": sample.p90}
    say(f"milliseconds an image (batch of 1, {args.threads} CPU threads, {args.rounds} rounds):")
    for name, found in result.items():
        say(f"  {name:<9} median {1e3 * found['median']:7.1f}   p90 {1e3 * found['p90']:7.1f}")
    return result
