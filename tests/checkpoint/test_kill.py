# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""SIGKILL at random moments, over and over: the run ends bit-equal to the one never killed."""

import logging
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import wait

import pytest
import torch
from detectron2.engine import HookBase

from tests.common.many import PRELOAD
from tests.common.resumed_runs import (
    differences,
    final_state,
    make_cfg,
    new_seed,
    quiet,
    register_mixed,
    start,
    write_images,
)

SERVER = multiprocessing.get_context("forkserver")
OPTS = ["DATALOADER.NUM_WORKERS", 1, "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.CHECKPOINT_PERIOD", 3]
# What a checkpoint takes: half of the file, the file, its name, its folder; last_checkpoint too.
WRITING = 7


class _Report(HookBase):
    """Tells the parent which iteration begins."""

    def __init__(self, pipe):
        self.pipe = pipe

    def before_step(self):
        self.pipe.send(self.trainer.iter)


class _DieWhileWriting:
    """Counts the steps of writing checkpoints; this process dies at one of them."""

    def __init__(self, at):
        self.left = at
        for module, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function):
        def counted(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                if function.__name__ == "save":
                    args[1].write(b"half a checkpoint")
                    args[1].flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted


def _train(images, teacher, folder, opts, seed, die_at, pipe):
    """What a child process does; its output is in a file, as its data workers outlive it."""
    folder.mkdir(exist_ok=True)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    quiet()
    # As in a process that a shell starts; the server's own way would be passed on.
    multiprocessing.set_start_method("fork", force=True)
    register_mixed(images)
    if die_at:
        _DieWhileWriting(die_at)
    trainer = start(make_cfg(teacher, folder, *opts), seed)
    trainer.register_hooks([_Report(pipe)])
    trainer.train()


def _live(images, teacher, folder, opts, seed, die_at=0, steps=None, delay=0.0):
    """One life of a run.

    Args:
        die_at: the step of writing at which it kills itself; 0 for none.
        steps: how many it begins before it is killed, after a delay in seconds.

    Returns:
        the iterations it began, and its exit code.
    """
    ours, theirs = SERVER.Pipe(duplex=False)
    child = SERVER.Process(
        target=_train, args=(images, teacher, folder, opts, seed, die_at, theirs)
    )
    child.start()
    begun = []
    while steps is None or len(begun) < steps:
        # The pipe itself stays open until the last data worker has noticed.
        if ours not in wait([ours, child.sentinel]):
            break
        begun.append(ours.recv())
    else:
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return begun, child.exitcode


@pytest.fixture(autouse=True)
def no_logging(monkeypatch):
    """What is printed are the lives."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    SERVER.set_forkserver_preload([*PRELOAD, "resumed_runs"])
    folder = tmp_path_factory.mktemp("mixed")
    write_images(folder)
    return folder


def _torture(images, teacher, tmp_path, iterations, kills, seed):
    """Kill a run so many times, half of them while it writes; compare it with one left alone."""
    opts = [*OPTS, "SOLVER.MAX_ITER", iterations]
    register_mixed(images)
    began = time.perf_counter()
    start(make_cfg(teacher, tmp_path / "whole", *opts), seed=1).train()
    step = (time.perf_counter() - began) / iterations
    moments, died = random.Random(seed), []
    folder = tmp_path / "killed"

    def live(**kill):
        # What begins anew is seeded alike; what goes on must not depend on its process's seed.
        life_seed = new_seed() if (folder / "last_checkpoint").exists() else 1
        begun, code = _live(images, teacher, folder, opts, life_seed, **kill)
        died.append(("from", *begun[:1], "to", *begun[-1:], kill, code))

    for i in range(kills):
        if i % 2:
            live(die_at=moments.randint(1, 2 * WRITING))
        else:
            live(steps=moments.randint(1, 5), delay=moments.uniform(0, 1.5 * step))
    live()
    print(*died, sep="\n")
    assert died[-1][-1] == 0, (folder / "output.txt").read_text()
    found, expected = final_state(folder), final_state(tmp_path / "whole")
    assert differences(found, expected) == []
    assert not list(folder.glob("*.unfinished"))
    return [code for *_, code in died].count(-signal.SIGKILL)


def test_five_kills_change_nothing(images, teacher_files, tmp_path):
    assert _torture(images, teacher_files, tmp_path, iterations=30, kills=5, seed=4) == 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_kills_change_nothing(images, teacher_files, tmp_path, seed):
    assert _torture(images, teacher_files, tmp_path, iterations=90, kills=20, seed=seed) == 20
