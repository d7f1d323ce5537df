# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""From DISTILL.TEACHER.CACHE* to a cache, and how much it may hold."""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ...data.map_cache.stores import FolderStore, MapStore, MemoryStore
from ..square_padding import square_size
from .cached_maps import TeacherCache

__all__ = ["build_teacher_cache", "byte_limit", "teacher_signature"]

# Changes whenever the maps or their files do.
_FORMAT = "1"
# Pixels; several times the largest stride.
_PADDING_SIZE = 512


def build_teacher_cache(
    cfg: CfgNode, teacher_cfg: CfgNode, model: nn.Module, sha256: str
) -> TeacherCache | None:
    """The cache of DISTILL.TEACHER.CACHE; None if it is "".

    Args:
        cfg: the student's config.
        teacher_cfg: the teacher's.
        model: the teacher.
        sha256: of its weights' file.
    """
    where = cfg.DISTILL.TEACHER.CACHE
    if not where:
        return None
    limit = byte_limit(cfg)
    store: MapStore
    if where == "memory":
        store = MemoryStore(limit)
    else:
        store = FolderStore(where, teacher_signature(cfg, teacher_cfg, sha256), limit)
    swapped = cfg.INPUT.FORMAT != teacher_cfg.INPUT.FORMAT

    def padding() -> dict:
        mean = model.pixel_mean.flip(0) if swapped else model.pixel_mean
        side = min(_PADDING_SIZE, square_size(model.backbone) or _PADDING_SIZE)
        return {"image": mean.expand(-1, side, side)}

    dtype = getattr(torch, cfg.DISTILL.TEACHER.CACHE_DTYPE)
    return TeacherCache(store, dtype=dtype, device=model.device, padding=padding)


def teacher_signature(cfg: CfgNode, teacher_cfg: CfgNode, sha256: str) -> dict[str, str]:
    """All that a teacher's maps depend on beside the image.

    MODEL holds its layers, levels and pixel statistics. Layout, compilation and device change
    values by rounding alone; they count, for a run must stay equal bit for bit.
    """
    model = teacher_cfg.MODEL.clone()
    model.defrost()
    for key in ("WEIGHTS", "DEVICE"):
        model.pop(key)
    if "LAZY" in model:  # its text counts, not where it lies
        model.LAZY.pop("FILE")
    node = cfg.DISTILL.TEACHER
    return {
        "format": _FORMAT,
        "weights": sha256,
        "model": hashlib.sha256(model.dump().encode()).hexdigest(),
        "channels": f"{cfg.INPUT.FORMAT} to {teacher_cfg.INPUT.FORMAT}",
        "precision": f"{node.PRECISION}, AMP {cfg.SOLVER.AMP.ENABLED}",
        "layout": f"{node.LAYOUT}, compiled {node.COMPILE}",
        "device": torch.device(cfg.MODEL.DEVICE).type,
        "dtype": node.CACHE_DTYPE,
    }


def byte_limit(cfg: CfgNode) -> int:
    """Bytes that the cache may hold: DISTILL.TEACHER.CACHE_GIB, or half of what is free."""
    node = cfg.DISTILL.TEACHER
    if node.CACHE_GIB:
        return int(node.CACHE_GIB * 2**30)
    if node.CACHE == "memory":
        return _free_memory() // 2 // comm.get_local_size()
    return _free_disk(node.CACHE) // 2


def _free_memory() -> int:
    """Bytes that a process can take before others suffer."""
    known = Path("/proc/meminfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    available = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    if available:
        return available[0] * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_disk(folder: str) -> int:
    """Free bytes where a folder is, or will be made, with what its files hold already."""
    path = Path(folder).absolute()
    held = sum(x.stat().st_size for x in path.rglob("*.safetensors")) if path.is_dir() else 0
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free + held
