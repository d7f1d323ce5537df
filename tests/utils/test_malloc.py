# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a step freed is there for the next one, without asking the system again."""

import platform
import subprocess
import sys

import pytest

from d2kd.engine import DistillTrainer, base_trainer
from d2kd.utils.malloc import keep_freed_memory
from tests.common.helpers import plain_cfg

# Counts the pages that are fetched anew for blocks of 100 and 1 MiB that come and go.
_SCRIPT = """
import resource, sys, torch
from d2kd.utils.malloc import keep_freed_memory
done = keep_freed_memory("cpu") if sys.argv[1] == "keep" else None
for turn in range(6):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(size * 2**18) for size in 40 * [1] + [100]]
    del blocks
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(mode):
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, mode]
    done, faults = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return done, int(faults)


def test_pages_are_fetched_once():
    done, faults = _run("keep")
    if platform.libc_ver()[0] == "glibc":
        assert done == "True" and faults < 1000 < _run("default")[1]
    else:
        assert faults >= 0, "other C libraries are left as they are"


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpus_are_left_to_pytorch(device):
    assert keep_freed_memory(device) is False


def test_training_asks_for_it_before_anything_is_built(monkeypatch):
    class Asked(Exception):
        pass

    def ask(device):
        raise Asked(device)

    monkeypatch.setattr(base_trainer, "keep_freed_memory", ask)
    with pytest.raises(Asked, match="cpu"):
        DistillTrainer(plain_cfg())
