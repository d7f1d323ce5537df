# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The group of processes that train together: joining it, and sharing gradients in it."""

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Group", "data_parallel", "join_group", "leave_group"]

# As in Detectron2: the others wait while the main process evaluates, which may take long.
TIMEOUT = timedelta(minutes=30)


class Group(NamedTuple):
    """All processes that train together.

    Attributes:
        device: the type of each process's device, "cuda" or "cpu".
        per_machine: number of processes on every machine.
        machines: number of machines.
        machine_rank: number of this machine, from 0.
        address: of the rendezvous: "tcp://host:port", "file://path" or "env://" (torchrun's).
    """

    device: str
    per_machine: int = 1
    machines: int = 1
    machine_rank: int = 0
    address: str = "env://"

    @property
    def size(self) -> int:
        """Number of processes on all machines."""
        return self.per_machine * self.machines

    def rank(self, local_rank: int) -> int:
        """The number among all processes of one on this machine."""
        return self.machine_rank * self.per_machine + local_rank


def join_group(group: Group, local_rank: int) -> None:
    """Make this process a member of the group; returns when all processes have joined.

    Args:
        group: all processes.
        local_rank: this process's number on its machine, which is also its GPU's.
    """
    if group.device == "cuda":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # By default each process starts as many threads as there are cores.
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
    """Create the group that ``comm.get_local_rank`` reads.

    Detectron2 0.6 has no function for it, so its private variable is set.
    """
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(group.per_machine)
        return
    for machine in range(group.machines):
        first = machine * group.per_machine
        made = dist.new_group(list(range(first, first + group.per_machine)))
        if machine == group.machine_rank:
            comm._LOCAL_PROCESS_GROUP = made


def leave_group() -> None:
    """Leave the group; to be called after the last step, when no process waits for another."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def data_parallel(model: nn.Module) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there are several processes.

    Detectron2's ``create_ddp_model`` does this for GPUs only. Every parameter gets a gradient in
    every step, so ``find_unused_parameters`` stays off.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    devices = [comm.get_local_rank()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
