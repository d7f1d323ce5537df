# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Writes docs/detectron2_keys.md: which of Detectron2's keys a training and its evaluation read.

    python -m experiments.detectron2_keys docs/detectron2_keys.md

Tiny detectors are built, trained and evaluated with every switch on, while each attribute that is
read from the config is recorded.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yacs.config
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from d2kd.config.defaults import get_value
from d2kd.config.load import all_keys
from experiments.detectron2_keys_runs import DETECTORS, detector_cfg, evaluate, train

__all__ = ["MAIN_KEYS", "document", "documented_keys", "trace_all"]

INTRODUCTION = """# Detectron2's keys in d2kd

Every key of Detectron2's defaults, and who reads it. `python -m experiments.detectron2_keys PAGE`
builds, trains and evaluates tiny detectors with every switch on, records what is read from the
config, and writes this page. A detector's name means that building this
`MODEL.META_ARCHITECTURE` reads the key. "d2kd checks it" means that another value than those that
work is refused, and the message names the key. A key of a detector that is not chosen has no
effect; d2kd warns of it when it differs from its default (`d2kd/config/unused_keys.py`).

"""

# What the trace cannot see, and what d2kd does otherwise than Detectron2.
NOTES = {
    "VERSION": "Detectron2 converts configs of older versions when it reads them",
    "GLOBAL.HACK": "nothing in Detectron2 reads it; d2kd refuses another value than 1.0",
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": "deprecated in Detectron2, which warns of it",
    "SOLVER.REFERENCE_WORLD_SIZE": "scales batch, rate and lengths to the number of processes",
    "SOLVER.AMP.ENABLED": "refused on a CPU",
    "SOLVER.LR_SCHEDULER_NAME": "d2kd checks it",
    "SOLVER.WARMUP_METHOD": "d2kd checks it",
    "SOLVER.MOMENTUM": "SGD's alone",
    "SOLVER.NESTEROV": "SGD's alone",
    "TEST.AUG.ENABLED": "after the last step, and with --eval-only; refused for other detectors "
    "than GeneralizedRCNN, for keypoints and for MODEL.LOAD_PROPOSALS",
    "TEST.PRECISE_BN.ENABLED": "the student alone runs",
    "TEST.EXPECTED_RESULTS": "[task, metric, value, tolerance] holds for every test set; "
    "[set, task, metric, value, tolerance] for one",
    "TEST.DETECTIONS_PER_IMAGE": "also the metrics' limit, which is never below COCO's 100",
    "VIS_PERIOD": "with a teacher, what the losses compare; without, GeneralizedRCNN's pictures, "
    "and d2kd warns for the others",
    "MODEL.LOAD_PROPOSALS": "with MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals, else refused",
    "DATASETS.PROPOSAL_FILES_TRAIN": "with MODEL.LOAD_PROPOSALS; refused without",
    "DATASETS.PROPOSAL_FILES_TEST": "with MODEL.LOAD_PROPOSALS; refused without",
    "DATALOADER.REPEAT_THRESHOLD": "with SAMPLER_TRAIN RepeatFactorTrainingSampler, else refused",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": "refused with DISTILL.ENABLED",
    "MODEL.WEIGHTS": "read by the checkpointer",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": "refused with DISTILL.ENABLED and losses of the heads",
    "CUDNN_BENCHMARK": "training on a GPU; an evaluation alone leaves it off, as in Detectron2",
}

# What release 0.6 lacks: key -> (its default, who reads it).
MAIN_KEYS = {
    "DATALOADER.REPEAT_SQRT": (True, "training"),
    "FLOAT32_PRECISION": ("", "training"),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": (0.5, "GeneralizedRCNN"),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": (50, "GeneralizedRCNN"),
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": (False, "GeneralizedRCNN"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False, "GeneralizedRCNN"),
    "SOLVER.BASE_LR_END": (0.0, "training"),
    "SOLVER.NUM_DECAYS": (3, "training"),
    "SOLVER.RESCALE_INTERVAL": (False, "training"),
}
# Read by ``default_setup`` through a function of its own, or by the merging itself.
_BY_OTHER_MEANS = {
    "CUDNN_BENCHMARK": "training",
    "SEED": "training",
    "VERSION": "the yaml's reader",
}

DETECTED = {name.partition(" ")[0] for name in DETECTORS}

Read = dict[str, set[str]]
_Run = tuple[str, CfgNode, Callable[[CfgNode], object]]


@contextmanager
def _recording(found: set[str]) -> Iterator[None]:
    """Add to ``found`` the dotted keys that are read as attributes of marked configs."""
    plain = yacs.config.CfgNode.__getattr__

    def read(node: CfgNode, name: str):
        value = plain(node, name)
        if "traced_prefix" in node.__dict__:
            found.add(node.__dict__["traced_prefix"] + name)
        return value

    yacs.config.CfgNode.__getattr__ = read
    try:
        yield
    finally:
        yacs.config.CfgNode.__getattr__ = plain


def _mark(node: CfgNode, prefix: str = "") -> CfgNode:
    """Let each group know its own name; copies of a config keep it."""
    node.__dict__["traced_prefix"] = prefix
    for name, value in node.items():
        if isinstance(value, CfgNode):
            _mark(value, f"{prefix}{name}.")
    return node


def trace_all(folder: Path) -> Read:
    """Key -> who reads it: "training", "evaluation", and names of detectors."""
    runs: list[_Run] = [
        (name.partition(" ")[0], detector_cfg(name), build_model) for name in DETECTORS
    ]
    runs += _whole_runs(folder)
    readers: Read = {key: {who} for key, who in _BY_OTHER_MEANS.items()}
    for who, cfg, run in runs:
        found: set[str] = set()
        with _recording(found):
            run(_mark(cfg))
        for key in found:
            # What building a detector reads of its groups is read in every run of it.
            of_detector = key.startswith("MODEL.") and key.count(".") > 1
            if who in DETECTED or not (of_detector and readers.get(key, set()) & DETECTED):
                readers.setdefault(key, set()).add(who)
    return readers


def _whole_runs(folder: Path) -> Iterator[_Run]:
    # Detectors are traced apart: what only they read is no key of every training.
    for options in (
        [],
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
        ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
        ["MODEL.LOAD_PROPOSALS", True, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
    ):
        for who, run in (("training", train), ("evaluation", evaluate)):
            cfg = detector_cfg("GeneralizedRCNN with keypoints", folder)
            cfg.merge_from_list(options)
            yield who, cfg, run


def document(readers: Read) -> str:
    """The page, a table for each group of keys."""
    defaults = {key: default for key, (default, _) in MAIN_KEYS.items()}
    found = {key: get_value(get_cfg(), key) for key in all_keys(get_cfg())}
    defaults.update({key: x for key, x in found.items() if not isinstance(x, dict)})
    groups: dict[str, list[str]] = {}
    for key in sorted(defaults):
        groups.setdefault(_group(key), []).append(key)
    parts = [INTRODUCTION]
    for group, members in sorted(groups.items()):
        parts += [f"## {group}\n\n| key | default | read by | note |\n| --- | --- | --- | --- |\n"]
        parts += [_row(key, defaults[key], readers) for key in members]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def _group(key: str) -> str:
    parts = key.split(".")
    if len(parts) == 1:
        return "Top level"
    return ".".join(parts[:2]) if parts[0] == "MODEL" and len(parts) > 2 else parts[0]


def _row(key: str, default: Any, readers: Read) -> str:
    by = (
        MAIN_KEYS[key][1]
        if key in MAIN_KEYS
        else ", ".join(sorted(readers.get(key, ()))) or "nobody"
    )
    notes = [
        *(["not in release 0.6"] if key in MAIN_KEYS else []),
        *([NOTES[key]] if key in NOTES else []),
    ]
    return f"| `{key}` | `{json.dumps(default)}` | {by} | {'; '.join(notes)} |\n"


def documented_keys(text: str) -> dict[str, str]:
    """Key -> the "read by" column of the page."""
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("| `"): row[2] for row in rows}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        text = document(trace_all(Path(folder)))
    Path(sys.argv[1]).write_text(text)
