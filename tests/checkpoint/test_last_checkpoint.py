# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Checkpoints that a run cannot go on from are named, by every process, before the first step."""

import multiprocessing
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from d2kd.checkpoint.last_checkpoint import find_last
from d2kd.engine import DistillTrainer
from d2kd.utils.errors import ResumeError
from tests.common.helpers import plain_cfg
from tests.common.many import PRELOAD

ITERATIONS = ["model_0000001.pth", "model_0000003.pth"]


def _save(folder, names=ITERATIONS):
    """Two checkpoints of different iterations; the second one is the last."""
    folder.mkdir(exist_ok=True)
    for name in names:
        saved = {"model": nn.Linear(64, 64).state_dict(), "iteration": int(name[6:-4])}
        torch.save(saved, folder / name)
        (folder / "last_checkpoint").write_text(name)
    return folder


def test_the_last_one_is_read_and_none_is_no_error(tmp_path):
    assert find_last(str(tmp_path)) is None
    last = find_last(str(_save(tmp_path)))
    assert last.path == str(tmp_path / ITERATIONS[1]) and last.content["iteration"] == 3


def _empty(folder):
    (folder / "last_checkpoint").write_text("")


def _remove(folder):
    (folder / ITERATIONS[1]).unlink()


def _truncate(folder):
    whole = (folder / ITERATIONS[1]).read_bytes()
    (folder / ITERATIONS[1]).write_bytes(whole[: len(whole) // 2])


def _put_code(folder):
    torch.save({"model": _empty}, folder / ITERATIONS[1])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_empty, "last_checkpoint is empty. .*model_0000001.pth, model_0000003.pth"),
        (_remove, "names model_0000003.pth, which is not there. .*model_0000001.pth"),
        (_truncate, "model_0000003.pth cannot be read as a checkpoint: .*model_0000001.pth"),
        (_put_code, "model_0000003.pth cannot be read as a checkpoint: .*model_0000001.pth"),
    ],
)
@pytest.mark.usefixtures("train_set")
def test_what_cannot_be_used_is_named_with_what_to_do(tmp_path, spoil, words):
    spoil(_save(tmp_path))
    trainer = DistillTrainer(plain_cfg("OUTPUT_DIR", str(tmp_path)))
    with pytest.raises(ResumeError, match="(?s)" + words + ".*delete last_checkpoint to start"):
        trainer.resume_or_load(resume=True)


def _ask(rank, folder, address, results):
    """What one of two machines with a folder of its own finds."""
    dist.init_process_group("gloo", address, rank=rank, world_size=2, timeout=timedelta(seconds=20))
    try:
        last = find_last(str(folder))
        results.send(last and last.describe())
    except ResumeError as error:
        results.send(f"error: {error}")
    dist.destroy_process_group()


def _of_two_machines(tmp_path, first, second):
    """What processes find whose folders hold these; one does not wait for the other in vain."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    pipes = [server.Pipe(duplex=False) for _ in range(2)]
    address = f"file://{tmp_path}/rendezvous"
    children = [
        server.Process(target=_ask, args=(i, folder, address, pipes[i][1]))
        for i, folder in enumerate((first, second))
    ]
    for child in children:
        child.start()
    found = [ours.recv() if ours.poll(60) else None for ours, _ in pipes]
    for child in children:
        child.join()
    return found


def test_machines_that_see_the_same_go_on(tmp_path):
    first, second = _save(tmp_path / "first"), _save(tmp_path / "second")
    assert _of_two_machines(tmp_path, first, second) == 2 * ["model_0000003.pth, iteration 3"]


def _other_iteration(folder):
    torch.save({"model": {}, "iteration": 2}, folder / ITERATIONS[1])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "last_checkpoint").unlink(), "second: no checkpoint"),
        (lambda folder: _save(folder, ITERATIONS[:1]), "second: model_0000001.pth, iteration 1"),
        (_other_iteration, "second: model_0000003.pth, iteration 2"),
        (_truncate, "model_0000003.pth cannot be read"),
    ],
)
def test_machines_that_see_others_all_refuse(tmp_path, spoil, words):
    first, second = _save(tmp_path / "first"), _save(tmp_path / "second")
    spoil(second)
    for message in _of_two_machines(tmp_path, first, second):
        assert message.startswith("error: the processes would resume from different checkpoints")
        assert "first: model_0000003.pth, iteration 3" in message and words in message
        assert "rank 1" in message and "OUTPUT_DIR" in message and "copy" in message
