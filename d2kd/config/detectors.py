# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The detector table: one row per meta-architecture holds every fact that d2kd uses about it.

To distil a detector of your own, write one row, and name the paired forward that runs it::

    from d2kd.config.detectors import DENSE_OUTPUTS, Detector, register_detector

    register_detector(
        Detector(
            name="MyDetector",
            forward_pair="forward_pair_dense",
            outputs=DENSE_OUTPUTS,
            num_classes_key="MODEL.MINE.NUM_CLASSES",
            dense_levels_key="MODEL.MINE.IN_FEATURES",
            add_config=add_my_config,
        )
    )

A detector that no existing paired forward can run brings its own function, registered with
``@PAIR_FORWARD_REGISTRY.register()`` (``d2kd.modeling.paired_forward.registry``).

A class that extends one of the table's detectors has that detector's row. Any other registered
meta-architecture is distilled by its backbone's features.
"""

from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn

from ..utils.errors import ConfigError
from ..utils.text import did_you_mean
from .detector_row import Detector, PlainFacts
from .fcos import add_fcos_config
from .gfl import add_gfl_config

__all__ = [
    "DENSE_OUTPUTS",
    "DETECTORS",
    "Detector",
    "PlainFacts",
    "all_own_groups",
    "detector_of",
    "find_detector",
    "get_detector",
    "is_known_dense",
    "plain_facts",
    "register_detector",
]

_ANCHOR_KEYS = (
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
)
# What a dense head predicts on positives and at all locations; bins in place of deltas as well.
DENSE_OUTPUTS = frozenset({"dense_logits", "logits", "deltas", "dense_deltas"})
_BINS = frozenset({"box_bins", "dense_box_bins"})


_PROPOSALS = frozenset({"RPN", "PROPOSAL_GENERATOR"})
_ROI = {"ROI_HEADS", "ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD"}


DETECTORS: dict[str, Detector] = {}
_BOXES = frozenset({"instances"})
# Meta-architectures of Detectron2 that have no row of their own.
_WITHOUT_ROW = {
    "SemanticSegmentor": PlainFacts(frozenset({"SEM_SEG_HEAD"}), frozenset({"sem_seg"}), False),
    "PanopticFPN": PlainFacts(
        _PROPOSALS | _ROI | {"SEM_SEG_HEAD", "PANOPTIC_FPN"},
        _BOXES | {"sem_seg", "panoptic_seg"},
        False,
    ),
}


def register_detector(row: Detector) -> None:
    """Add a row to the table; from then on the detector is checked and distilled.

    Call it before the config is built, so that ``add_d2kd_config`` adds the detector's own keys.

    Args:
        row: of a meta-architecture that has no row.

    Raises:
        ConfigError: there is a row of this name.
    """
    if row.name in DETECTORS:
        raise ConfigError(f"the detector {row.name!r} is registered twice: choose another name")
    DETECTORS[row.name] = row


def find_detector(cfg: CfgNode) -> Detector | None:
    """The row of MODEL.META_ARCHITECTURE, or of the nearest class that it extends; None if none."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in DETECTORS or name not in META_ARCH_REGISTRY:
        return DETECTORS.get(name)
    return _row_of(META_ARCH_REGISTRY.get(name))


def get_detector(cfg: CfgNode) -> Detector:
    """The row of MODEL.META_ARCHITECTURE as distillation needs it: of features alone by default.

    Raises:
        ConfigError: no meta-architecture of that name is registered.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    row = find_detector(cfg)
    if row is None and name not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {name!r} is not known: import the module that registers it, "
            f"or set it to one of {sorted({*DETECTORS, *_WITHOUT_ROW})}."
            f"{did_you_mean(name, DETECTORS)}"
        )
    return row or _features_only(name)


def _row_of(detector: object) -> Detector | None:
    """The row of a class, or of the nearest base class that has one."""
    for base in getattr(detector, "__mro__", ()):
        if base.__name__ in DETECTORS:
            return DETECTORS[base.__name__]
    return None


def _features_only(name: str) -> Detector:
    return Detector(name=name, forward_pair="forward_pair_features")


def plain_facts(cfg: CfgNode) -> PlainFacts:
    """The facts of MODEL.META_ARCHITECTURE; those of an unknown one assume nothing.

    They are not inherited: a class that extends a detector may read and predict more.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    return DETECTORS[name].plain if name in DETECTORS else _WITHOUT_ROW.get(name, PlainFacts())


def is_known_dense(cfg: CfgNode) -> bool:
    """Is it a dense detector whose keys are all known? It has neither proposals nor masks."""
    row = DETECTORS.get(cfg.MODEL.META_ARCHITECTURE)
    return row is not None and not row.two_stage and row.plain.own_groups is not None


def all_own_groups() -> frozenset[str]:
    """Every node under MODEL that only some of the known meta-architectures read."""
    facts = [*(row.plain for row in DETECTORS.values()), *_WITHOUT_ROW.values()]
    return frozenset().union(*(x.own_groups or () for x in facts))


def detector_of(model: nn.Module) -> Detector:
    """The row of a built detector, by its class; of features alone by default."""
    return _row_of(type(model)) or _features_only(type(model).__name__)


register_detector(
    Detector(
        name="GeneralizedRCNN",
        forward_pair="forward_pair_rcnn",
        outputs=DENSE_OUTPUTS - {"dense_deltas"},
        num_classes_key="MODEL.ROI_HEADS.NUM_CLASSES",
        dense_levels_key="MODEL.RPN.IN_FEATURES",
        anchor_keys=_ANCHOR_KEYS,
        two_stage=True,
        plain=PlainFacts(_PROPOSALS | _ROI, _BOXES),
    )
)
register_detector(
    Detector(
        name="ProposalNetwork",
        forward_pair="forward_pair_rcnn",
        outputs=frozenset({"dense_logits"}),
        dense_levels_key="MODEL.RPN.IN_FEATURES",
        anchor_keys=_ANCHOR_KEYS,
        two_stage=True,
        plain=PlainFacts(_PROPOSALS, frozenset({"proposals"}), False),
    )
)
register_detector(
    Detector(
        name="RetinaNet",
        forward_pair="forward_pair_dense",
        outputs=DENSE_OUTPUTS,
        num_classes_key="MODEL.RETINANET.NUM_CLASSES",
        dense_levels_key="MODEL.RETINANET.IN_FEATURES",
        cross_head_keys=("MODEL.RETINANET.NUM_CONVS", "MODEL.FPN.OUT_CHANNELS"),
        box_keys=("MODEL.RETINANET.BBOX_REG_WEIGHTS", *_ANCHOR_KEYS),
        anchor_keys=_ANCHOR_KEYS,
        plain=PlainFacts(frozenset({"RETINANET"}), _BOXES, False),
    )
)
register_detector(
    Detector(
        name="FCOS",
        forward_pair="forward_pair_dense",
        outputs=DENSE_OUTPUTS,
        num_classes_key="MODEL.FCOS.NUM_CLASSES",
        dense_levels_key="MODEL.FCOS.IN_FEATURES",
        cross_head_keys=("MODEL.FCOS.NUM_CONVS", "MODEL.FPN.OUT_CHANNELS"),
        add_config=add_fcos_config,
        plain=PlainFacts(frozenset({"FCOS"}), _BOXES, False),
    )
)
register_detector(
    Detector(
        name="GFL",
        forward_pair="forward_pair_dense",
        outputs=DENSE_OUTPUTS | _BINS,
        num_classes_key="MODEL.GFL.NUM_CLASSES",
        dense_levels_key="MODEL.GFL.IN_FEATURES",
        cross_head_keys=("MODEL.GFL.NUM_CONVS", "MODEL.FPN.OUT_CHANNELS"),
        box_keys=("MODEL.GFL.REG_MAX", "MODEL.ANCHOR_GENERATOR.OFFSET"),
        add_config=add_gfl_config,
        plain=PlainFacts(frozenset({"GFL"}), _BOXES, False),
    )
)
