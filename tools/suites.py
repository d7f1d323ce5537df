"""What the ablation compares: methods as yaml files and, for variants, options over them."""

from typing import Dict, NamedTuple, Tuple

__all__ = ["BASELINE", "INHERIT", "SHAPES", "Method"]


class Method(NamedTuple):
    """A row of the table: ``opts`` override ``config``, a path from the root of the repository."""

    name: str
    config: str
    opts: Tuple[str, ...] = ()


def _shapes(detector: str, name: str, folder: str, *opts: str) -> Method:
    return Method(name, f"configs/shapes/{folder}/{detector}_thin_from_wide_800.yaml", opts)


def _baseline(detector: str) -> Method:
    return Method(BASELINE, f"configs/shapes/Distill-{detector}.yaml", ("DISTILL.ENABLED", "False"))


BASELINE = "baseline"

_CONSTANT = ("DISTILL.SCHEDULE.NAME", "constant")


def _tar_loss(name: str) -> Method:
    opts = ("DISTILL.LOSSES", f"['{name}']", *_CONSTANT)
    return _shapes("faster_rcnn", f"TAR {name}", "TAR", *opts)


# Detector -> the baseline, then the methods that are held against it. TAR's losses alone are
# trained without its decay, as the row of all three that they are compared with.
SHAPES: Dict[str, Tuple[Method, ...]] = {
    "faster_rcnn": (
        _baseline("faster_rcnn"),
        _tar_loss("feature"),
        _tar_loss("cls"),
        _tar_loss("reg"),
        _shapes("faster_rcnn", "TAR without decay", "TAR", *_CONSTANT),
        _shapes("faster_rcnn", "TAR", "TAR"),
        _shapes("faster_rcnn", "FRS", "FRS"),
        _shapes("faster_rcnn", "SSIM", "SSIM"),
        _shapes("faster_rcnn", "hint", "hint"),
        _shapes("faster_rcnn", "PKD", "PKD"),
        _shapes("faster_rcnn", "CWD", "CWD"),
        _shapes("faster_rcnn", "Gaussian SSIM + soft labels", "GaussianSSIM"),
    ),
    "retinanet": (
        _baseline("retinanet"),
        *(_shapes("retinanet", name, name) for name in ("TAR", "FRS", "SSIM")),
    ),
    "fcos": (
        _baseline("fcos"),
        _shapes("fcos", "FRS", "FRS"),
    ),
    "gfl": (
        _baseline("gfl"),
        *(_shapes("gfl", name, name) for name in ("FRS", "LD")),
        _shapes("gfl", "FRS + LD", "FRS+LD"),
    ),
}

# What a student can take over from its teacher: everything but the thin backbone.
INHERIT: Dict[str, Tuple[str, ...]] = {
    "faster_rcnn": ("backbone.fpn", "proposal_generator", "roi_heads"),
    "retinanet": ("backbone.fpn", "head"),
    "fcos": ("backbone.fpn", "head"),
    "gfl": ("backbone.fpn", "head"),
}
