# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Two processes share a cache folder; each has a memory of its own."""

import pytest
import torch
from detectron2.utils import comm

from d2kd.engine import DistillTrainer
from d2kd.engine.distributed.process_group import Group, join_group
from d2kd.engine.distributed.worker_processes import run_children
from d2kd.engine.unwrap import unwrap
from tests.common.helpers import distill_cfg, register_train_set
from tests.common.many import fast_start, free_address

IMAGES = 4


def _train(rank, group, folder, teacher_files, cache):
    """What one process does: 12 steps of 2 images each, of 4 images in 2 variants."""
    torch.set_num_threads(1)
    join_group(group, rank)
    if rank == 0:
        (folder / "images").mkdir()
        register_train_set(folder / "images", IMAGES)
    comm.synchronize()
    if rank == 1:
        register_train_set(folder / "images", IMAGES)
    names = ["OUTPUT_DIR", str(folder / "out"), "DISTILL.TEACHER.CACHE", cache]
    cfg = distill_cfg(teacher_files, *names, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 12)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    model = unwrap(trainer.model)
    end = dict(model.student.state_dict())
    record = {"misses": model.teacher.cache.misses, "hits": model.teacher.cache.hits, "end": end}
    torch.save(record, folder / f"rank{rank}.pth")
    comm.synchronize()


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_two_processes(monkeypatch, teacher_files, tmp_path, kind):
    fast_start(monkeypatch)
    cache = "memory" if kind == "memory" else str(tmp_path / "cache")
    group = Group("cpu", 2, address=free_address())
    calls = {str(rank): (rank, group, tmp_path, teacher_files, cache) for rank in (0, 1)}
    run_children(_train, calls)
    found = [torch.load(tmp_path / f"rank{i}.pth", weights_only=False) for i in (0, 1)]
    assert all(x["misses"] + x["hits"] == 24 for x in found)
    assert all(0 < x["misses"] <= 2 * IMAGES for x in found)
    if kind == "folder":
        # Both may compute an entry at the same moment, and then write the same file.
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2 * IMAGES
        assert not list((tmp_path / "cache").rglob("*.unfinished"))
    first, second = (x["end"] for x in found)
    weights = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(first[name], second[name]) for name in weights)
