# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every detector as student and as teacher, on the networks of helpers.py."""

from tests.common.helpers import LEVELS, K, distill_cfg, write_teacher

# GFL's and FCOS's heads normalise groups of channels.
DETECTORS = {
    "GeneralizedRCNN": {},
    "RetinaNet": {"MODEL.RETINANET.IN_FEATURES": LEVELS, "MODEL.RETINANET.NUM_CLASSES": K},
    "FCOS": {
        "MODEL.FCOS.IN_FEATURES": LEVELS,
        "MODEL.FCOS.NUM_CLASSES": K,
        "MODEL.FPN.OUT_CHANNELS": 64,
    },
    "GFL": {
        "MODEL.GFL.IN_FEATURES": LEVELS,
        "MODEL.GFL.NUM_CLASSES": K,
        "MODEL.FPN.OUT_CHANNELS": 64,
    },
}
WIDE = {"MODEL.FPN.OUT_CHANNELS": 96}
FRS = {
    "DISTILL.FEATURE.MASK": "richness",
    "DISTILL.FEATURE.CHANNELS": "sum",
    "DISTILL.CLS.WHERE": "richness",
}


def flat(keys):
    return [part for item in keys.items() for part in item]


def write_teachers(folder):
    """Detector -> (yaml, checkpoint)."""
    return {
        name: write_teacher(folder / name, "MODEL.META_ARCHITECTURE", name, *flat({**keys, **WIDE}))
        for name, keys in DETECTORS.items()
    }


def detector_cfg(files, detector, keys):
    """A student of the detector under its own kind, without BatchNorm; keys: more config keys."""
    common = {"MODEL.META_ARCHITECTURE": detector, "MODEL.RESNETS.NORM": "FrozenBN"}
    # No loss hides another.
    common["DISTILL.FEATURE.WEIGHT"] = 0.001
    return distill_cfg(files[detector], *flat({**common, **DETECTORS[detector], **keys}))
