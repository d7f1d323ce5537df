# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of the two detectors: complete, of one kind, fed by their own statistics, and adapted."""

from collections import Counter

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.init_from_teacher import init_from_teacher
from ..checkpoint.weights import Loaded, UnreachableError, load_weights, resolve_weights
from ..modeling import Distiller
from ..modeling.build import build_teacher, read_teacher_config
from ..utils.text import first_few
from .finding import Finding, error, ok, warning

__all__ = ["build", "check_adapters", "check_inherit", "check_pixels", "load_start"]

# Detectron2's default means, in the two orders of channels.
IMAGENET = {"BGR": [103.530, 116.280, 123.675], "RGB": [123.675, 116.280, 103.530]}


def build(cfg: CfgNode) -> tuple[nn.Module | None, list[Finding]]:
    """The Distiller (or the plain detector) in training mode; None where it cannot be built."""
    try:
        if not cfg.DISTILL.ENABLED:
            return build_model(cfg).train(), [ok("teacher", "none: DISTILL.ENABLED is False")]
        model = Distiller(cfg).train()
    except (ValueError, OSError, KeyError, AssertionError) as problem:
        return None, [_whose(cfg, problem)]
    count = len(model.teacher.model.state_dict())
    weights = model.teacher.fingerprint["weights"]
    teacher = ok("teacher", f"all of its {count} tensors are in {weights}")
    return model, [teacher, _compared(model)]


def _whose(cfg: CfgNode, problem: Exception) -> Finding:
    """Is it the teacher alone, or that the two do not fit?"""
    text = str(problem.args[0] if isinstance(problem, KeyError) else problem)
    if not cfg.DISTILL.ENABLED:
        return error("student", text)
    try:
        build_teacher(read_teacher_config(cfg), cfg.INPUT.FORMAT)
    except Exception:
        return error("teacher", text)
    return error("pair", text)


def _compared(model: Distiller) -> Finding:
    """What the enabled losses read, which the builders have checked to agree."""
    losses, parts = model.distill_losses, []
    if "feature" in losses:
        shapes = model.student.backbone.output_shape()
        levels = [f"{name} (stride {shapes[name].stride})" for name in losses["feature"].adapters]
        parts.append("levels " + ", ".join(levels))
    heads = sorted(model.required.requires - {"features"})
    if heads:
        parts.append("the heads' " + ", ".join(heads))
    text = f"{', '.join(losses)} compare {'; '.join(parts)}: alike in both detectors"
    return ok("pair", text)


def check_pixels(cfg: CfgNode) -> list[Finding]:
    """Channel order and pixel statistics of each network, by its own config."""
    found = [_pixels_of(cfg, "student")]
    if cfg.DISTILL.ENABLED:
        teacher_cfg = read_teacher_config(cfg)
        found.append(_pixels_of(teacher_cfg, "teacher"))
        ours, theirs = cfg.INPUT.FORMAT, teacher_cfg.INPUT.FORMAT
        if ours != theirs:
            found.append(
                ok("channel order", f"{ours} images are turned to {theirs} for the teacher")
            )
    return found


def _pixels_of(cfg: CfgNode, who: str) -> Finding:
    order, mean, std = cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    check, text = f"{who}'s pixels", f"{order}, mean {mean}, deviation {std}"
    other = {"BGR": "RGB", "RGB": "BGR"}.get(order)
    if max(mean) <= 1 or max(std) < 1:
        return warning(check, text, "images are 0..255: PIXEL_MEAN and PIXEL_STD look like 0..1's")
    if other and mean == IMAGENET[other]:
        return warning(check, text, f"INPUT.FORMAT is {order}, but PIXEL_MEAN is {other}'s")
    return ok(check, text)


def load_start(cfg: CfgNode, model: nn.Module) -> tuple[bool, Finding]:
    """Load what the student starts from, as training does.

    Returns:
        Whether the student now is what training starts from, and what was found.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        return True, ok("start", "random weights: MODEL.WEIGHTS is empty")
    student = model.student if isinstance(model, Distiller) else model
    try:
        loaded = load_weights(student, resolve_weights(weights, "MODEL.WEIGHTS"))
    except UnreachableError as problem:
        advice = "training needs it: fetch it beforehand, or run this where it can be had"
        return False, warning("start", str(problem), advice)
    except Exception as problem:  # whatever a loader raises would have stopped the training
        return False, error("start", str(problem))
    return True, _started(weights, loaded)


def _started(weights: str, loaded: Loaded) -> Finding:
    """How much of the student a checkpoint brought; heads that it lacks are a matter of course."""
    # Where a file has no counters of batches, PyTorch starts them at 0.
    matched = [name for name in loaded.matched if not name.endswith("num_batches_tracked")]
    lacking = [*loaded.missing, *loaded.wrong_shape]
    whole = _count_parts([*matched, *lacking])
    text = f"MODEL.WEIGHTS {weights}: {len(matched)} of {sum(whole.values())} tensors"
    if not matched:
        text += f"; the file has {first_few(loaded.unexpected, 2) or 'none'}, the student "
        return error("start", text + first_few(lacking, 2))
    if lacking:
        rows = [f"{n} of {whole[part]} of {part}" for part, n in _count_parts(lacking).items()]
        text += f"; the rest is random: {', '.join(rows)}"
    if loaded.wrong_shape:
        text += f"; another shape have {first_few(loaded.wrong_shape, 2)}"
    return ok("start", text)


def _count_parts(names: list[str]) -> Counter:
    """Of a detector's parts (backbone, roi_heads, ...), how many tensors are named."""
    return Counter(name.split(".")[0] for name in names)


def check_inherit(cfg: CfgNode, model: nn.Module) -> Finding:
    """Which of the student's modules take the teacher's weights; they take them now."""
    prefixes = cfg.DISTILL.STUDENT.INHERIT
    if not prefixes:
        return ok("inherit", "no module starts from the teacher's weights")
    try:
        if cfg.DISTILL.ENABLED:
            student, teacher = model.student, model.teacher
        else:
            student, teacher = model, build_teacher(read_teacher_config(cfg), cfg.INPUT.FORMAT)
        copied = init_from_teacher(student, teacher.model, prefixes)
    except (ValueError, FileNotFoundError) as problem:
        return error("inherit", str(problem))
    groups = [f"{p} ({sum(name.startswith(p) for name in copied)} tensors)" for p in prefixes]
    return ok("inherit", ", ".join(groups) + " start from the teacher's weights")


def check_adapters(cfg: CfgNode, model: Distiller) -> Finding:
    """Which levels have a layer between student and teacher, and why."""
    if "feature" not in model.distill_losses:
        return ok("adapters", "none: the feature loss is not enabled")
    adapters = model.distill_losses["feature"].adapters
    shapes = [x.backbone.output_shape() for x in (model.student, model.teacher.model)]
    levels: dict[str, list[str]] = {}
    for level, adapter in adapters.items():
        ours, theirs = (shape[level].channels for shape in shapes)
        size = "x".join(map(str, getattr(adapter, "kernel_size", ()))) or "none"
        levels.setdefault(f"{size} ({ours} -> {theirs} channels)", []).append(level)
    rows = [f"{', '.join(names)}: {what}" for what, names in levels.items()]
    kind = cfg.DISTILL.FEATURE.ADAPTER
    why = {"auto": "where channels differ", "none": "never", "1x1": "always", "3x3": "always"}
    count = sum(p.numel() for p in adapters.parameters())
    text = f"{'; '.join(rows)}; DISTILL.FEATURE.ADAPTER '{kind}': {why[kind]}; {count} parameters"
    return ok("adapters", text)
