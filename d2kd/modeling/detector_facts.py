# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What the checks read of a detector, from the detector itself: one that was built without a cfg.

Shape shorthand in this file:
    A: anchors of one cell
"""

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..config import get_value
from ..config.detectors import DETECTORS, detector_of
from ..utils.errors import ConfigError

__all__ = ["write_facts"]

# Cell anchors are float32.
_DIGITS = 6


def write_facts(cfg: CfgNode, model: nn.Module) -> None:
    """Set the keys that the checks compare to what a detector is.

    Args:
        cfg: with the defaults of every key; changed in place. Keys that this detector does not have
            keep theirs.
        model: a detector; its classes, levels, anchors, box encoding, pixel
            statistics and input format are written.

    Raises:
        ConfigError: its class is not registered, nor one that it extends.
    """
    row, name = detector_of(model), type(model).__name__
    if name not in META_ARCH_REGISTRY and name not in DETECTORS:
        # A class that extends a detector of the table is checked as that one.
        name = row.name
    if name not in META_ARCH_REGISTRY and name not in DETECTORS:
        raise ConfigError(
            f"the detector {name} is not registered: put @META_ARCH_REGISTRY.register() (of "
            "detectron2.modeling) before its class"
        )
    cfg.MODEL.META_ARCHITECTURE = name
    for key, value in [*_input_facts(model), *_head_facts(model, cfg)]:
        _set(cfg, key, value)
    head = getattr(model, "head", None)
    if row.cross_head_keys and hasattr(head, "cls_subnet"):
        depth, width = row.cross_head_keys
        convolutions = [x for x in head.cls_subnet.modules() if isinstance(x, nn.Conv2d)]
        _set(cfg, depth, len(convolutions))
        _set(cfg, width, next(iter(model.backbone.output_shape().values())).channels)
    if row.has_box_bins:
        _set(cfg, "MODEL.GFL.REG_MAX", head.num_bins - 1)


def _input_facts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name in ("pixel_mean", "pixel_std"):
        if isinstance(getattr(model, name, None), Tensor):
            values = getattr(model, name).flatten().tolist()
            yield f"MODEL.{name.upper()}", [_rounded(x) for x in values]
    if getattr(model, "input_format", None):
        yield "INPUT.FORMAT", model.input_format


def _head_facts(model: nn.Module, cfg: CfgNode) -> Iterator[tuple[str, Any]]:
    row = detector_of(model)
    proposals, heads = (getattr(model, x, None) for x in ("proposal_generator", "roi_heads"))
    generator = getattr(proposals or model, "anchor_generator", None)
    levels = getattr(proposals or model, "in_features", getattr(model, "head_in_features", None))
    classes = getattr(heads or model, "num_classes", None)
    if row.dense_levels_key and levels:
        yield row.dense_levels_key, list(levels)
    if row.num_classes_key and classes:
        yield row.num_classes_key, classes
    if hasattr(generator, "cell_anchors"):
        sizes, ratios = zip(*(_sizes_and_ratios(x) for x in generator.cell_anchors))
        yield "MODEL.ANCHOR_GENERATOR.SIZES", list(sizes)
        yield "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", list(ratios)
        yield "MODEL.ANCHOR_GENERATOR.OFFSET", generator.offset
    if proposals is not None:
        yield "MODEL.PROPOSAL_GENERATOR.NAME", type(proposals).__name__
    if heads is not None:
        yield "MODEL.ROI_HEADS.NAME", type(heads).__name__
        yield "MODEL.MASK_ON", getattr(heads, "mask_on", False)
        yield "MODEL.KEYPOINT_ON", getattr(heads, "keypoint_on", False)
    predictor = getattr(heads, "box_predictor", None)
    if hasattr(predictor, "box2box_transform"):
        yield "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", list(predictor.box2box_transform.weights)
        yield "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", getattr(predictor, "use_sigmoid_ce", False)
    if hasattr(getattr(model, "box2box_transform", None), "weights"):
        yield "MODEL.RETINANET.BBOX_REG_WEIGHTS", list(model.box2box_transform.weights)


def _sizes_and_ratios(cell: Tensor) -> tuple[list[Any], list[float]]:
    """The sizes and aspect ratios of which Detectron2 makes these anchors.

    Args:
        cell: (A, 4), xyxy around 0.

    Returns:
        both in the generator's order; the boxes themselves and no ratio where they are made
        otherwise.
    """
    widths, heights = (cell[:, 2:] - cell[:, :2]).double().unbind(1)
    sizes = _different((widths * heights).sqrt())
    ratios = _different(heights / widths)
    if len(sizes) * len(ratios) != len(cell):
        return [[_rounded(x) for x in box] for box in cell.tolist()], []
    return sizes, ratios


def _different(values: Tensor) -> list[float]:
    return list(dict.fromkeys(_rounded(x) for x in values.tolist()))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a key; one that this version of Detectron2 lacks is left out."""
    node, name = key.rpartition(".")[::2]
    if get_value(cfg, key) is not None:
        get_value(cfg, node)[name] = value
