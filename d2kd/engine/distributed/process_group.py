# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""One process among those that train together: it joins their group and shares its gradients."""

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Group", "data_parallel", "join_group", "leave_group"]

# As Detectron2's: the main process may evaluate for long while the others wait for it.
TIMEOUT = timedelta(minutes=30)


class Group(NamedTuple):
    """All processes that train together.

    Attributes:
        device: type of device that each has for itself, "cuda" or "cpu".
        per_machine: processes on every machine.
        machines: how many.
        machine_rank: which of them this one is.
        address: where they meet: "tcp://host:port", "file://path" or "env://" (torchrun's).
    """

    device: str
    per_machine: int = 1
    machines: int = 1
    machine_rank: int = 0
    address: str = "env://"

    @property
    def size(self) -> int:
        return self.per_machine * self.machines

    def rank(self, local_rank: int) -> int:
        return self.machine_rank * self.per_machine + local_rank


def join_group(group: Group, local_rank: int) -> None:
    """Become a process of the group; returns once all are there.

    Args:
        local_rank: this process's number on its machine, which is also its GPU's.
    """
    if group.device == "cuda":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Each process would otherwise start as many threads as there are cores.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // group.per_machine))
    dist.init_process_group(
        backend="nccl" if group.device == "cuda" else "gloo",
        init_method=group.address,
        world_size=group.size,
        rank=group.rank(local_rank),
        timeout=TIMEOUT,
    )
    _create_local_group(group)
    comm.synchronize()


def _create_local_group(group: Group) -> None:
    """What ``comm.get_local_rank`` asks; release 0.6 has no function that makes it."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(group.per_machine)
        return
    for machine in range(group.machines):
        first = machine * group.per_machine
        made = dist.new_group(list(range(first, first + group.per_machine)))
        if machine == group.machine_rank:
            comm._LOCAL_PROCESS_GROUP = made


def leave_group() -> None:
    """After the last step, when no other process waits for this one any more."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def data_parallel(model: nn.Module) -> nn.Module:
    """The model, or where there are several processes, the model as DistributedDataParallel.

    Detectron2's ``create_ddp_model`` does this for GPUs alone. Every parameter gets a gradient in
    every step, so none has to be searched for (``find_unused_parameters`` stays off).
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    devices = [comm.get_local_rank()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
