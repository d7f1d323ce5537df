# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of the two detectors: weights, agreement, pixel statistics, start and adapters."""

from collections.abc import Collection

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.init_from_teacher import init_from_teacher
from ..checkpoint.start import describe_frozen_random, describe_other_classes, describe_start
from ..checkpoint.student_weights import load_student_at, load_student_start
from ..checkpoint.weights import Loaded, UnreachableError
from ..modeling import Distiller
from ..modeling.build import build_teacher, read_teacher_config
from ..modeling.head_checks import why_unreadable
from ..modeling.lazy_teacher import is_lazy
from ..modeling.parts import build_detector
from ..modeling.square_padding import square_size
from ..utils.errors import D2kdError, PairMismatchError, WeightsError
from .finding import Finding, error, ok, warning

__all__ = [
    "build",
    "check_adapters",
    "check_frozen",
    "check_inherit",
    "check_pixels",
    "check_square",
    "check_readable",
    "load_checkpoint",
    "load_start",
]

# Detectron2's default means, in the two orders of channels.
IMAGENET = {"BGR": [103.530, 116.280, 123.675], "RGB": [123.675, 116.280, 103.530]}

# Output of the teacher -> which losses read it.
READABLE = {
    "features": "features ('feature')",
    "logits": "class scores of positives ('cls')",
    "deltas": "boxes of positives ('reg')",
    "dense_logits": "scores at all locations (masks)",
    "dense_deltas": "boxes at all locations (REG.WHERE)",
    "box_bins": "box distributions ('distribution_kl')",
}


def build(cfg: CfgNode) -> tuple[nn.Module | None, list[Finding]]:
    """Build what is trained.

    Returns:
        The Distiller (the plain detector without a teacher) in training mode, or None if it
        cannot be built, and what was found.
    """
    try:
        if not cfg.DISTILL.ENABLED:
            return build_detector(cfg).train(), [ok("teacher", "none: DISTILL.ENABLED is False")]
        model = Distiller(cfg).train()
    except (ValueError, OSError, KeyError, AssertionError) as problem:
        return None, [_build_error(problem)]
    count = len(model.teacher.model.state_dict())
    weights = model.teacher.fingerprint["weights"]
    text = f"all of its {count} tensors are in {weights}"
    if is_lazy(read_teacher_config(cfg)):
        text += f"; Python code builds it, {cfg.DISTILL.TEACHER.CONFIG_FILE}"
    teacher = ok("teacher", text)
    return model, [teacher, _describe_pair(model)]


def _build_error(problem: Exception) -> Finding:
    """Put a failed build down to the teacher, the pair or the student, by the error's class."""
    # str() of a KeyError is in quotes.
    text = str(problem.args[0] if isinstance(problem, KeyError) else problem)
    if isinstance(problem, PairMismatchError):
        return error("pair", text)
    # The builder loads the teacher's weights alone; ``load_start`` loads the student's.
    if isinstance(problem, WeightsError) or "DISTILL.TEACHER" in text:
        return error("teacher", text)
    return error("student", text)


def _describe_pair(model: Distiller) -> Finding:
    """Name what the enabled losses compare; the builders have checked that it agrees."""
    losses, parts = model.distill_losses, []
    if "feature" in losses:
        shapes = model.student.backbone.output_shape()
        levels = [f"{name} (stride {shapes[name].stride})" for name in losses["feature"].adapters]
        parts.append("levels " + ", ".join(levels))
    heads = sorted(model.required.requires - {"features"})
    if heads:
        parts.append("the heads' " + ", ".join(heads))
    text = f"{', '.join(losses)} compare {'; '.join(parts)}: they agree in both detectors"
    return ok("pair", text)


def check_readable(cfg: CfgNode, model: Distiller) -> Finding:
    """Say what losses could read of this teacher, beside what the enabled ones do."""
    networks = (cfg, read_teacher_config(cfg), model.student, model.teacher.model)
    reasons = {what: why_unreadable(*networks, output) for output, what in READABLE.items()}
    can = [what for what, reason in reasons.items() if not reason]
    text = f"losses can read {', '.join(can) or 'nothing'}"
    cannot = [f"{what} ({reason})" for what, reason in reasons.items() if reason]
    return ok("readable", "; not ".join([text, *cannot]))


def check_pixels(cfg: CfgNode) -> list[Finding]:
    """Check each detector's channel order and pixel statistics, as its own config has them."""
    found = [_pixels_of(cfg, "student")]
    if cfg.DISTILL.ENABLED:
        teacher_cfg = read_teacher_config(cfg)
        found.append(_pixels_of(teacher_cfg, "teacher"))
        ours, theirs = cfg.INPUT.FORMAT, teacher_cfg.INPUT.FORMAT
        if ours != theirs:
            found.append(
                ok("channel order", f"{ours} images are converted to {theirs} for the teacher")
            )
    return found


def check_square(cfg: CfgNode, model: Distiller) -> list[Finding]:
    """Whether images can be larger than the square to which a teacher such as ViTDet pads."""
    square, longest = square_size(model.teacher.model.backbone), cfg.INPUT.MAX_SIZE_TRAIN
    if not square:
        return []
    text = f"the teacher pads images to {square}x{square}; INPUT.MAX_SIZE_TRAIN is {longest}"
    if longest > square or 0 in cfg.INPUT.MIN_SIZE_TRAIN:
        advice = f"a larger image stops the training: set it to {square}, unless a mapper of your "
        return [warning("square", text, advice + "own keeps them smaller")]
    return [ok("square", text)]


def _pixels_of(cfg: CfgNode, who: str) -> Finding:
    order, mean, std = cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    check = f"{who}'s pixels"
    text = f"{order}, mean {mean}, standard deviation {std}"
    other = {"BGR": "RGB", "RGB": "BGR"}.get(order)
    if max(mean) <= 1 or max(std) < 1:
        return warning(check, text, "pixels are 0..255: PIXEL_MEAN and PIXEL_STD are made for 0..1")
    if other and mean == IMAGENET[other]:
        return warning(check, text, f"INPUT.FORMAT is {order}, but PIXEL_MEAN is {other}'s")
    return ok(check, text)


def load_start(cfg: CfgNode, model: nn.Module) -> tuple[bool, Loaded | None, Finding]:
    """Load MODEL.WEIGHTS into the student, as training does.

    Returns:
        Whether the student now has the weights that training starts from, how the file fitted, and
        what was found.
    """
    try:
        loaded = load_student_start(cfg, _student_of(model))
    except UnreachableError as problem:
        advice = "training needs it: download it first, or run this where it can be downloaded"
        return False, None, warning("start", str(problem), advice)
    except D2kdError as problem:
        return False, None, error("start", str(problem))
    if loaded is None:
        return True, None, ok("start", "random weights: MODEL.WEIGHTS is empty")
    others = describe_other_classes(cfg, loaded)
    if others:
        advice = "the heads start from other classes: is that what is meant?"
        return True, loaded, warning("start", others, advice)
    return True, loaded, ok("start", describe_start(cfg.MODEL.WEIGHTS, loaded))


def load_checkpoint(model: Distiller, weights: str) -> Finding:
    """Load a checkpoint of a run, with its adapters, into student and losses."""
    try:
        has_adapters = load_student_at(weights, model.student, model.distill_losses)
    except D2kdError as problem:
        return error("checkpoint", str(problem))
    if not has_adapters and list(model.distill_losses.parameters()):
        advice = "choose a checkpoint that d2kd wrote during this run"
        return warning("checkpoint", f"{weights} has no adapters: theirs are random", advice)
    return ok("checkpoint", f"{weights}: what follows was measured there")


def _student_of(model: nn.Module) -> nn.Module:
    return model.student if isinstance(model, Distiller) else model


def check_inherit(cfg: CfgNode, model: nn.Module) -> tuple[list[str], Finding]:
    """Copy the teacher's weights into the modules of DISTILL.STUDENT.INHERIT and list them.

    Returns:
        The names of the copied tensors, and what was found.
    """
    prefixes = cfg.DISTILL.STUDENT.INHERIT
    if not prefixes:
        return [], ok("inherit", "no module starts from the teacher's weights")
    try:
        if cfg.DISTILL.ENABLED:
            student, teacher = model.student, model.teacher
        else:
            student, teacher = model, build_teacher(read_teacher_config(cfg), cfg.INPUT.FORMAT)
        copied = init_from_teacher(student, teacher.model, prefixes)
    except (ValueError, OSError) as problem:
        return [], error("inherit", str(problem))
    groups = [f"{p} ({sum(name.startswith(p) for name in copied)} tensors)" for p in prefixes]
    return copied, ok("inherit", ", ".join(groups) + " start from the teacher's weights")


def check_frozen(cfg: CfgNode, model: nn.Module, known: Collection[str]) -> list[Finding]:
    """Warn of frozen layers that no checkpoint has set; nothing is found where there are none.

    Args:
        known: names of the student's tensors that a checkpoint has set.
    """
    text = describe_frozen_random(cfg, _student_of(model), known)
    return [warning("frozen", *text.rsplit(". ", 1))] if text else []


def check_adapters(cfg: CfgNode, model: Distiller) -> Finding:
    """List the layers that map the student's channels to the teacher's, level by level."""
    if "feature" not in model.distill_losses:
        return ok("adapters", "none: the feature loss is not enabled")
    adapters = model.distill_losses["feature"].adapters
    shapes = [x.backbone.output_shape() for x in (model.student, model.teacher.model)]
    levels: dict[str, list[str]] = {}
    for level, adapter in adapters.items():
        ours, theirs = (shape[level].channels for shape in shapes)
        size = "x".join(map(str, adapter.kernel_size)) if isinstance(adapter, nn.Conv2d) else "none"
        levels.setdefault(f"{size} ({ours} -> {theirs} channels)", []).append(level)
    rows = [f"{', '.join(names)}: {what}" for what, names in levels.items()]
    kind = cfg.DISTILL.FEATURE.ADAPTER
    added = {"auto": "where channels differ", "none": "never", "1x1": "always", "3x3": "always"}
    count = sum(p.numel() for p in adapters.parameters())
    text = f"{'; '.join(rows)}; DISTILL.FEATURE.ADAPTER is '{kind}', which adds a layer "
    return ok("adapters", f"{text}{added[kind]}; {count} parameters")
