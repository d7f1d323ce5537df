# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The student's part of a training's config, which ``student.yaml`` holds."""

from collections.abc import Callable, Iterator

from detectron2.config import CfgNode, get_cfg

from .defaults import add_d2kd_config
from .detectors import DETECTORS, find_detector
from .timm import forget_start, is_timm
from .user_modules import user_configs

__all__ = ["dump_student_config", "student_config"]


def student_config(cfg: CfgNode) -> CfgNode:
    """A copy of a config without the keys that d2kd alone reads; every other key is kept.

    Also kept are the keys of a backbone or detector of your own (``MODEL.MINE``). Of the nodes
    that d2kd adds (``MODEL.FCOS``, ``MODEL.GFL``, ``MODEL.TIMM``) those of other networks go.
    """
    student = cfg.clone()
    student.defrost()
    for key in _new_keys(_d2kd_config(), get_cfg()):
        if not _is_kept(key, cfg):
            node, name = _parent(student, key)
            node.pop(name, None)
    if "TIMM" in student.MODEL:
        forget_start(student)
    return student


def dump_student_config(student: CfgNode) -> str:
    """The text of ``student.yaml``; its first line says which function adds its keys.

    Args:
        student: from ``student_config``.
    """
    adders: dict[str, list[str]] = {}
    for key in _new_keys(student, get_cfg()):
        adders.setdefault(_adder(key), []).append(key)
    named = [f"{adder} adds {', '.join(keys)}" for adder, keys in adders.items()]
    first = " and ".join(named) or "detectron2.config.get_cfg alone"
    return f"# Read after {first}.\n{student.dump()}"


def _adder(key: str) -> str:
    """The function that adds a key which Detectron2 does not have, as the start of a clause."""
    adders = [row.add_config for row in DETECTORS.values() if key in _added_by(row.add_config)]
    if key == "MODEL.TIMM":
        return "d2kd.add_d2kd_config, which"
    users = [name for name, add in user_configs().items() if key in _added_by(add)]
    if users:
        return f"{users[0]}.add_config, which"
    if not adders:
        return "the function that"
    if adders[0].__module__.startswith("d2kd."):
        return "d2kd.add_d2kd_config, which"
    return f"{adders[0].__module__}.{adders[0].__name__}, which"


def _d2kd_config() -> CfgNode:
    cfg = get_cfg()
    add_d2kd_config(cfg)
    return cfg


def _new_keys(cfg: CfgNode, base: CfgNode, prefix: str = "") -> Iterator[str]:
    """The dotted keys that ``cfg`` has and ``base`` has not; a new node counts as one key."""
    for key, value in cfg.items():
        if key not in base:
            yield prefix + key
        elif isinstance(value, CfgNode) and isinstance(base[key], CfgNode):
            yield from _new_keys(value, base[key], f"{prefix}{key}.")


def _is_kept(key: str, cfg: CfgNode) -> bool:
    """Whether the student needs a key that ``add_d2kd_config`` adds."""
    if key == "MODEL.TIMM":
        return is_timm(cfg)
    row = find_detector(cfg)
    if row is not None and (
        row.name == cfg.MODEL.META_ARCHITECTURE or key in _added_by(row.add_config)
    ):
        return key in _added_by(row.add_config)
    # A detector of one's own may read what another one's row adds: kept where it was set.
    owners = [row for row in DETECTORS.values() if key in _added_by(row.add_config)]
    node, name = _parent(cfg, key)
    default, _ = _parent(_d2kd_config(), key)
    return bool(owners) and node.get(name) != default[name]


def _added_by(add_config: Callable[[CfgNode], None]) -> set[str]:
    cfg = _d2kd_config() if add_config in user_configs().values() else get_cfg()
    before = cfg.clone()
    add_config(cfg)
    return set(_new_keys(cfg, before))


def _parent(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """The node that holds a dotted key, and the key's name in it."""
    *path, name = key.split(".")
    for part in path:
        cfg = cfg[part]
    return cfg, name
