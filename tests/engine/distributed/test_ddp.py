# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Two processes: every parameter is in every step, also at factor 0 and without ground truth."""

import torch
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_optimizer

from d2kd.engine import build_distill_hooks
from d2kd.engine.distributed.process_group import Group, data_parallel, join_group
from d2kd.engine.distributed.worker_processes import run_children
from d2kd.modeling import Distiller
from tests.common.helpers import count_calls, distill_cfg, make_batch
from tests.common.many import fast_start, free_address

ITERATIONS = 4
FULL, EMPTY = ([[8, 12, 50, 60]], [[4, 4, 40, 30]]), ([], [])


def _train(rank, group, folder, teacher_files):
    """What one process does: rank 1 never sees a box at the even iterations, rank 0 at 3."""
    torch.set_num_threads(1)
    join_group(group, rank)
    # From the second iteration on the factor is 0.
    steps = ["DISTILL.SCHEDULE.NAME", "step", "DISTILL.SCHEDULE.STEPS", (0.25,)]
    cfg = distill_cfg(teacher_files, *steps, "DISTILL.SCHEDULE.GAMMA", 0.0)
    torch.manual_seed(rank)  # DDP gives rank 1 the weights of rank 0
    distiller = Distiller(cfg)
    model = data_parallel(distiller)
    empty = [(False, True), (False, False), (False, True), (True, False)]
    batches = [make_batch(EMPTY if e[rank] else FULL, seed=i) for i, e in enumerate(empty)]
    trainer = SimpleTrainer(model, batches, build_optimizer(cfg, distiller))
    trainer.register_hooks(build_distill_hooks(cfg))
    (teacher_runs,) = count_calls(distiller.teacher.model.backbone)
    start = {k: v.clone() for k, v in distiller.named_parameters()}
    trainer.train(0, ITERATIONS)
    names = sorted(trainer.storage.histories())
    weights = [v for v, _ in trainer.storage.history("loss_weight/feature").values()]
    record = {"start": start, "end": dict(distiller.named_parameters()), "names": names}
    record["teacher_runs"] = len(teacher_runs)
    torch.save({**record, "weights": weights}, f"{folder}/rank{rank}.pth")


def test_two_processes_stay_in_step(monkeypatch, teacher_files, tmp_path):
    fast_start(monkeypatch)
    group = Group("cpu", 2, address=free_address())
    run_children(_train, {str(rank): (rank, group, tmp_path, teacher_files) for rank in (0, 1)})
    first, second = (torch.load(tmp_path / f"rank{i}.pth", weights_only=False) for i in (0, 1))
    assert first["weights"] == second["weights"] == [1.0, 0.0, 0.0, 0.0]
    assert first["teacher_runs"] == second["teacher_runs"] == 1, "nobody reads it at factor 0"
    for name, parameter in first["end"].items():
        assert torch.equal(parameter, second["end"][name]), name
        moved = not torch.equal(parameter, first["start"][name])
        assert moved == (not name.startswith("teacher.")), name
    # Rank 0 gathers what both logged.
    assert {"loss_distill_feature", "loss_distill_cls", "loss_distill_reg"} <= set(first["names"])
