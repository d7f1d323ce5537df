# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The weights that a student starts from: enough of them, and none that stay random for ever."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from detectron2.config import CfgNode
from torch import nn

from ..config.timm import is_timm
from ..data.class_names import class_names, same_class_names
from ..utils.errors import WeightsError
from ..utils.text import first_few
from .weights import Loaded

__all__ = [
    "check_start",
    "describe_frozen_random",
    "describe_other_classes",
    "describe_start",
    "starting_names",
]

_KEY = "MODEL.ALLOW_UNMATCHED_WEIGHTS"


def check_start(cfg: CfgNode, loaded: Loaded) -> None:
    """MODEL.WEIGHTS holds something of the student, and at least half of its backbone.

    Tensors that DISTILL.STUDENT.INHERIT or MODEL.TIMM set do not count as lacking.

    Args:
        cfg: of the run.
        loaded: how MODEL.WEIGHTS fitted.

    Raises:
        WeightsError: it does not; MODEL.ALLOW_UNMATCHED_WEIGHTS True allows it.
    """
    if cfg.MODEL.ALLOW_UNMATCHED_WEIGHTS:
        return
    matched, lacking = _by_fit(loaded)
    inside = _backbone([*matched, *lacking])
    elsewhere = _set_elsewhere(cfg, lacking)
    have = sum(inside(name) for name in {*matched, *elsewhere})
    whole = sum(inside(name) for name in [*matched, *lacking])
    if matched and 2 * have >= whole:
        return
    text = describe_start(cfg.MODEL.WEIGHTS, loaded)
    if matched:
        text += f"; that is {have} of the {whole} tensors of the backbone"
    raise WeightsError(
        f"{text}. The file holds {loaded.contains}; the student has {first_few(lacking, 2)}. Set "
        'MODEL.WEIGHTS to a checkpoint of this detector or of its backbone, to "" for random '
        f"weights, or {_KEY} to True to train as it is"
    )


def describe_start(weights: str, loaded: Loaded) -> str:
    """How many of the student's tensors a checkpoint held, and which parts stay random."""
    matched, lacking = _by_fit(loaded)
    whole = _count_parts([*matched, *lacking])
    text = f"MODEL.WEIGHTS {weights}: {len(matched)} of {sum(whole.values())} tensors"
    if lacking and matched:
        rows = [f"{n} of {whole[part]} of {part}" for part, n in _count_parts(lacking).items()]
        text += f"; the others stay random: {', '.join(rows)}"
    if loaded.wrong_shape:
        text += f"; of another shape: {first_few(loaded.wrong_shape, 2)}"
    return text


def starting_names(loaded: Loaded | None, inherited: Sequence[str] = ()) -> set[str]:
    """Names of the student's tensors that some checkpoint has set.

    Args:
        loaded: how MODEL.WEIGHTS fitted; None where it is empty.
        inherited: what ``init_from_teacher`` copied.
    """
    return {*inherited, *(loaded.matched if loaded else ())}


def describe_frozen_random(cfg: CfgNode, student: nn.Module, known: Collection[str]) -> str:
    """What training never changes although no checkpoint has set it, and what to set; else "".

    Args:
        cfg: of the run.
        student: with its frozen parts.
        known: from ``starting_names``.
    """
    modules = dict(student.named_modules())
    convolutions = [n for n, m in modules.items() if _is_frozen_convolution(m)]
    # Detectron2's and timm's have this name; neither is a BatchNorm of PyTorch.
    norms = [n for n, m in modules.items() if type(m).__name__.startswith("FrozenBatchNorm")]
    random = [[n for n in x if not _is_known(cfg, n, known)] for x in (convolutions, norms)]
    texts = []
    for names, kind in zip(random, ("frozen convolutions", "FrozenBN layers")):
        if names:
            texts.append(f"{len(names)} {kind} (first {names[0]})")
    if not texts:
        return ""
    return (
        f"{' and '.join(texts)} keep their random or neutral start for ever: no checkpoint sets "
        f"them, training does not. {_advise(cfg, *random)}"
    )


def describe_other_classes(cfg: CfgNode, loaded: Loaded) -> str:
    """What a checkpoint was trained on if its classes are not those of the data sets; else ""."""
    ours, theirs = class_names(cfg), loaded.classes
    if not ours or not theirs or same_class_names(ours, theirs):
        return ""
    return (
        f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} was trained on the classes {', '.join(theirs)}; those "
        f"of the data sets are {', '.join(ours)}"
    )


def _is_frozen_convolution(module: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    return isinstance(module, kinds) and not module.weight.requires_grad


def _is_known(cfg: CfgNode, module: str, known: Collection[str]) -> bool:
    return f"{module}.weight" in known or _is_timms(cfg, module)


def _advise(cfg: CfgNode, convolutions: Sequence[str], norms: Sequence[str]) -> str:
    ways = []
    if convolutions and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        ways.append("MODEL.BACKBONE.FREEZE_AT to 0")
    if norms:
        where = "MODEL.TIMM.NORM" if is_timm(cfg) else "MODEL.RESNETS.NORM"
        if "fpn_" in norms[0]:
            where = "MODEL.FPN.NORM"
        stays = {"MODEL.TIMM.NORM": '""', "MODEL.FPN.NORM": '"" or "GN"'}.get(where, '"BN" or "GN"')
        node = cfg.MODEL.TIMM if where == "MODEL.TIMM.NORM" else cfg.MODEL[where.split(".")[1]]
        if node.NORM == "FrozenBN":
            ways.append(f"{where} to {stays}")
    start = "MODEL.TIMM.WEIGHTS or MODEL.WEIGHTS" if is_timm(cfg) else "MODEL.WEIGHTS"
    advice = f"Set {start} to a checkpoint that holds them"
    return f"{advice}, or {' and '.join(ways)}" if ways else advice


def _is_timms(cfg: CfgNode, name: str) -> bool:
    """Whether MODEL.TIMM sets a tensor or module itself."""
    own_start = is_timm(cfg) and bool(cfg.MODEL.TIMM.WEIGHTS or cfg.MODEL.TIMM.PRETRAINED)
    return own_start and name.startswith("backbone.bottom_up.")


def _set_elsewhere(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    prefixes = tuple(cfg.DISTILL.STUDENT.INHERIT)
    return [n for n in names if _is_timms(cfg, n) or (prefixes and n.startswith(prefixes))]


def _by_fit(loaded: Loaded) -> tuple[list[str], list[str]]:
    """The tensors that matched, and those that lack; a head of other classes may lack."""
    # PyTorch sets a counter of batches to 0 if the file has none.
    matched = [name for name in loaded.matched if not name.endswith("num_batches_tracked")]
    # Pixel statistics are the config's.
    matched = [name for name in matched if name not in ("pixel_mean", "pixel_std")]
    shaped = [text.split(":")[0] for text in loaded.wrong_shape]
    return matched, [*loaded.missing, *shaped]


def _backbone(names: Sequence[str]) -> Callable[[str], bool]:
    """Tells whether a tensor is of the backbone below its pyramid, or of what comes nearest."""
    for prefix in ("backbone.bottom_up.", "backbone.", ""):
        if any(name.startswith(prefix) for name in names):
            return lambda name: name.startswith(prefix)
    return bool


def _count_parts(names: Sequence[str]) -> Counter[str]:
    """Count tensors by the detector's part that they belong to: backbone, roi_heads, ..."""
    return Counter(name.split(".")[0] for name in names)
