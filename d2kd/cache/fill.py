# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Computes the maps of every training image in every variant, in one or several processes."""

from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from threading import Event, Thread
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from ..config.load import load_config
from ..data.map_cache.variants import variants_of
from ..data.mapper import NamingMapper
from ..data.train_records import load_train_records
from ..engine.distributed.worker_processes import run_children
from ..engine.prepare_cache import prepare_cache
from ..modeling import Distiller
from ..modeling.paired_forward.cached_parts import cached_parts
from ..utils.command_line import exit_on_user_error
from ..utils.device import device_or_cpu
from ..utils.errors import ConfigError
from ..utils.progress import open_bar

__all__ = ["fill_cache", "read_config"]


def read_config(path: str, opts: list[str], modules: Sequence[str] = ()) -> CfgNode:
    """The config as train_net.py reads it, on the CPU if there is no GPU.

    Raises:
        ConfigError: its cache is not in a folder, or nothing is distilled.
    """
    cfg = load_config(path, opts, modules)
    where = cfg.DISTILL.TEACHER.CACHE
    if not cfg.DISTILL.ENABLED or where in ("", "memory"):
        raise ConfigError(
            f"DISTILL.ENABLED is {cfg.DISTILL.ENABLED} and DISTILL.TEACHER.CACHE {where!r}: only a "
            "cache in a folder can be filled ahead, so set them to True and a folder, as './cache'"
        )
    cfg.MODEL.DEVICE, changed = device_or_cpu(cfg.MODEL.DEVICE)
    if changed:
        print(changed, flush=True)
    cfg.freeze()
    return cfg


def fill_cache(
    config_file: str, opts: list[str], processes: int = 1, modules: Sequence[str] = ()
) -> tuple[int, int]:
    """Fill the cache of a config; entries that are there are read and kept.

    It can be killed at any moment: another call computes what is absent.

    Args:
        config_file, opts: as given to train_net.py.
        processes: that compute; each loads the teacher.
        modules: names after ``--import``.

    Returns:
        the number of entries, and of those that were computed.

    Raises:
        ConfigError: the cache cannot hold all images, or is no folder.
    """
    cfg = read_config(config_file, opts, modules)
    records = load_train_records(cfg)
    model = Distiller(cfg)
    prepare_cache(cfg, model, records)
    total = len(records) * len(list(variants_of(cfg)))
    context = get_context("spawn")
    done, computed = context.Value("q", 0), context.Value("q", 0)
    with _Progress(total, done):
        if processes == 1:
            _fill_share(cfg, model, records, done, computed)
        else:
            given = (config_file, opts, modules)
            run_children(
                _fill_in_child,
                {f"process {i}": (given, i, processes, done, computed) for i in range(processes)},
            )
    return done.value, computed.value


class _Progress:
    """A progress bar that looks at a shared counter twice a second."""

    def __init__(self, total: int, done: Any):
        self._bar = open_bar(total, "teacher cache", "entry")
        self._done = done
        self._end = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()
        self._show()
        self._bar.close()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self._show()

    def _show(self) -> None:
        self._bar.update(self._done.value - self._bar.n)


def _fill_in_child(
    given: tuple[str, list[str], Sequence[str]],
    index: int,
    processes: int,
    done: Any,
    computed: Any,
) -> None:
    """One process's share: every so-manieth image; given: of ``read_config``."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    with exit_on_user_error():
        cfg = read_config(*given)
        records = load_train_records(cfg)[index::processes]
        _fill_share(cfg, Distiller(cfg), records, done, computed)


def _fill_share(
    cfg: CfgNode, model: Distiller, records: list[dict], done: Any, computed: Any
) -> None:
    parts, run = cached_parts(model.forward_pair, model.teacher, model.required)
    device, half = model.device.type, cfg.SOLVER.AMP.ENABLED
    # As AMPTrainer computes it.
    with torch.no_grad(), torch.autocast(device, torch.float16, enabled=half):
        for sample in _samples(cfg, records):
            new = sample is not None and model.teacher.cache.fill(sample, parts, run)
            with done.get_lock():
                done.value += 1
            with computed.get_lock():
                computed.value += int(new)


def _samples(cfg: CfgNode, records: list[dict]) -> Iterator[dict | None]:
    """Every record in every variant, as the training's mapper makes it; None if it is skipped."""
    mappers = [
        NamingMapper(
            DatasetMapper(cfg, True, augmentations=variant.augmentations(cfg)),
            cfg.INPUT.FORMAT,
            cfg.DATALOADER.BAD_IMAGES,
        )
        for variant in variants_of(cfg)
    ]
    for record in records:
        for mapper in mappers:
            yield mapper(record)
