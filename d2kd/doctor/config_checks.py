# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checks of the config, the device and the output folder; no network is built yet."""

import os
import shutil
from collections.abc import Sequence

from detectron2.config import CfgNode

from ..checkpoint.output_dir import prepare_output
from ..config.load import load_config
from ..config.unused_keys import describe_unused_keys
from ..config.validation import describe_warmup
from ..utils.device import device_or_cpu
from ..utils.errors import ConfigError, D2kdError
from .finding import Finding, error, ok, warning

__all__ = ["check_device", "check_output", "read_config"]


def read_config(
    path: str, options: Sequence[str], modules: Sequence[str] = ()
) -> tuple[CfgNode | None, list[Finding]]:
    """Read the config.

    Returns:
        The frozen config, or None if it cannot be used, and what was found.
    """
    try:
        cfg = load_config(path, options, modules)
    except (D2kdError, OSError) as problem:
        return None, [error("config", str(problem))]
    cfg.freeze()
    teacher = f" under {cfg.DISTILL.TEACHER.CONFIG_FILE}" if cfg.DISTILL.ENABLED else ""
    kind = "distils" if cfg.DISTILL.ENABLED else "trains without a teacher"
    text = f"{path} {kind}: {cfg.MODEL.META_ARCHITECTURE}{teacher}"
    found = [ok("config", text + "; every key is known and in range")]
    if describe_warmup(cfg):
        found.append(warning("warm-up", describe_warmup(cfg), "lower SOLVER.WARMUP_ITERS"))
    if unused := describe_unused_keys(cfg):
        found.append(
            warning("unused keys", "\n".join(unused), "remove them, or set what reads them")
        )
    return cfg, found


def check_device(cfg: CfgNode) -> tuple[CfgNode, Finding]:
    """Check that the configured GPU is there.

    Returns:
        The config, on the CPU if there is no GPU, and the finding.
    """
    device, changed = device_or_cpu(cfg.MODEL.DEVICE)
    if not changed:
        return cfg, ok("device", f"MODEL.DEVICE is {device}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.freeze()
    return cfg, warning("device", changed, "train on a GPU, or set MODEL.DEVICE to cpu")


def check_output(cfg: CfgNode) -> Finding:
    """Check that OUTPUT_DIR can be written, or created in its nearest existing parent."""
    folder = os.path.abspath(cfg.OUTPUT_DIR)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        prepare_output(folder)
    except ConfigError as problem:
        return error("output", f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {problem}")
    free = shutil.disk_usage(folder).free / 2**30
    return ok("output", f"{cfg.OUTPUT_DIR} can be written; {free:.0f} GiB free")
