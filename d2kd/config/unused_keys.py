# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Keys of Detectron2 that a config sets and nothing would read: refused, or warned of.

docs/detectron2_keys.md lists which part of the code reads which key.
"""

import logging
from collections.abc import Iterator

from detectron2.config import CfgNode, get_cfg

from .defaults import add_d2kd_config, get_value
from .detectors import all_own_groups, is_known_dense, plain_facts
from .spelling import same_value

__all__ = ["describe_unused_keys", "ineffective_keys", "warn_of_unused_keys"]

# Groups whose other keys count if ENABLED is True.
_SWITCHED = ("INPUT.CROP", "SOLVER.CLIP_GRADIENTS", "TEST.AUG", "TEST.PRECISE_BN")

logger = logging.getLogger(__name__)


def ineffective_keys(cfg: CfgNode) -> Iterator[str]:
    """A line for each key that would silently do something else than it says."""
    yield from _augmentation_problems(cfg)
    yield from _proposal_problems(cfg)
    if cfg.GLOBAL.HACK != 1.0:
        yield f"  GLOBAL.HACK is {cfg.GLOBAL.HACK!r}: set it to 1.0, nothing reads it"
    threshold, sampler = cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.SAMPLER_TRAIN
    if threshold and sampler != "RepeatFactorTrainingSampler":
        yield (
            f"  DATALOADER.REPEAT_THRESHOLD is {threshold!r} and DATALOADER.SAMPLER_TRAIN "
            f"{sampler!r}, which repeats nothing: set DATALOADER.SAMPLER_TRAIN to "
            "'RepeatFactorTrainingSampler', or DATALOADER.REPEAT_THRESHOLD to 0.0"
        )


def _augmentation_problems(cfg: CfgNode) -> Iterator[str]:
    """TEST.AUG is Detectron2's GeneralizedRCNNWithTTA, which knows boxes and masks."""
    if not cfg.TEST.AUG.ENABLED:
        return
    name = cfg.MODEL.META_ARCHITECTURE
    # A detector of one's own is looked at when it is built.
    if name != "GeneralizedRCNN" and plain_facts(cfg).own_groups is not None:
        yield (
            "  TEST.AUG.ENABLED is True: set it to False, Detectron2 augments tests of "
            f"MODEL.META_ARCHITECTURE GeneralizedRCNN alone, not of {name}"
        )
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            yield (
                f"  TEST.AUG.ENABLED is True: set it to False, Detectron2 cannot augment tests "
                f"with MODEL.{key}"
            )


def _proposal_problems(cfg: CfgNode) -> Iterator[str]:
    loaded, generator = cfg.MODEL.LOAD_PROPOSALS, cfg.MODEL.PROPOSAL_GENERATOR.NAME
    for split in ("TRAIN", "TEST"):
        files = cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if files and not loaded:
            yield (
                f"  DATASETS.PROPOSAL_FILES_{split} is {files!r}: set MODEL.LOAD_PROPOSALS to "
                "True, without which the files are not read, or leave the key out"
            )
    if loaded and (generator in ("RPN", "RRPN") or is_known_dense(cfg)):
        yield (
            "  MODEL.LOAD_PROPOSALS is True, but a detector of MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} and MODEL.PROPOSAL_GENERATOR.NAME {generator!r} does "
            "not use what is loaded: set the latter to 'PrecomputedProposals' for a "
            "GeneralizedRCNN, or MODEL.LOAD_PROPOSALS to False"
        )


def describe_unused_keys(cfg: CfgNode) -> list[str]:
    """A line for each key that differs from its default and has no effect in this config."""
    return [*_unread_groups(cfg), *_switched_off(cfg), *_unread_switches(cfg)]


def _switched_off(cfg: CfgNode) -> Iterator[str]:
    """Keys of groups that are not ENABLED."""
    defaults = get_cfg()
    for group in _SWITCHED:
        node, plain = get_value(cfg, group), get_value(defaults, group)
        changed = [] if node.ENABLED else list(_changed(node, plain, f"{group}."))
        if changed:
            yield f"{', '.join(changed)}: {group}.ENABLED is False"
    for split in ("TRAIN", "TEST"):
        key = f"PRECOMPUTED_PROPOSAL_TOPK_{split}"
        if cfg.DATASETS[key] != defaults.DATASETS[key] and not cfg.MODEL.LOAD_PROPOSALS:
            yield f"DATASETS.{key}: MODEL.LOAD_PROPOSALS is False"


def _unread_groups(cfg: CfgNode) -> Iterator[str]:
    name = cfg.MODEL.META_ARCHITECTURE
    own_groups = plain_facts(cfg).own_groups
    if own_groups is None:  # a detector of one's own may read anything
        return
    defaults = get_cfg()
    add_d2kd_config(defaults)
    for group in sorted(all_own_groups() - own_groups):
        changed = list(_changed(cfg.MODEL[group], defaults.MODEL[group], f"MODEL.{group}."))
        if changed:
            yield f"{', '.join(changed)}: MODEL.META_ARCHITECTURE {name} does not read them"


def _changed(node: CfgNode, defaults: CfgNode, prefix: str) -> Iterator[str]:
    for name, value in node.items():
        key, default = prefix + name, defaults.get(name)
        if isinstance(value, CfgNode):
            yield from _changed(value, default, f"{key}.")
        elif not same_value(key, value, default):
            yield key


def _unread_switches(cfg: CfgNode) -> Iterator[str]:
    name = cfg.MODEL.META_ARCHITECTURE
    for key, head in (("MASK_ON", "mask"), ("KEYPOINT_ON", "keypoint")):
        if cfg.MODEL[key] and is_known_dense(cfg):
            yield f"MODEL.{key} is True, but MODEL.META_ARCHITECTURE {name} has no {head} head"
    if cfg.VIS_PERIOD > 0 and not (cfg.DISTILL.ENABLED or plain_facts(cfg).draws):
        yield f"VIS_PERIOD is {cfg.VIS_PERIOD}, but {name} alone draws no training images"
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        for key, default in (("MOMENTUM", 0.9), ("NESTEROV", False)):
            if cfg.SOLVER[key] != default:
                value = cfg.SOLVER[key]
                yield f"SOLVER.{key} is {value}, which SOLVER.OPTIMIZER ADAMW does not read"
    if cfg.TEST.EVAL_PERIOD > 0 and not cfg.DATASETS.TEST and not cfg.TEST.PRECISE_BN.ENABLED:
        yield f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, but DATASETS.TEST names no set"


def warn_of_unused_keys(cfg: CfgNode) -> None:
    """Log ``describe_unused_keys``, if there are any, in one warning."""
    lines = describe_unused_keys(cfg)
    if lines:
        logger.warning("These keys have no effect:\n%s", "\n".join(f"  {line}" for line in lines))
