# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""No data worker outlives its training, in whatever part and by whatever signal that ends."""

import copy
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator

from d2kd.engine import DistillTrainer
from d2kd.engine.interrupt import interruptible
from tests.common.many import PRELOAD
from tests.common.resumed_runs import MIXED, make_cfg, quiet, register_mixed, start, write_images

SERVER = multiprocessing.get_context("forkserver")
WORKERS = 2
OPTS = ["DATALOADER.NUM_WORKERS", WORKERS, "SOLVER.MAX_ITER", 4, "DATASETS.TEST", (MIXED,)]
# A worker looks at its parent once a second.
SECONDS = 5.0


def _report_and_wait(pipe):
    """Tell the test which data workers there are, then take no more samples for a while."""
    pipe.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(2)


class _WaitInStep(HookBase):
    def __init__(self, pipe):
        self.pipe = pipe

    def before_step(self):
        if self.trainer.iter == 1:
            _report_and_wait(self.pipe)


class _WaitInEvaluation(DatasetEvaluator):
    def __init__(self, pipe):
        self.pipe, self.waited = pipe, False

    def process(self, inputs, outputs):
        if not self.waited:
            self.waited = True
            _report_and_wait(self.pipe)


def register_bulky(images):
    """MIXED, whose samples are larger than a pipe: a worker waits until its parent has read one."""
    register_mixed(images)
    records = [{**record, "note": "x" * 100_000} for record in DatasetCatalog.get(MIXED)]
    DatasetCatalog.remove(MIXED)
    DatasetCatalog.register(MIXED, lambda: copy.deepcopy(records))


def _run(images, teacher, folder, part, pipe):
    """What a child process does."""
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    quiet()
    # As in a process that a shell starts; the server's own way would be passed on.
    multiprocessing.set_start_method("fork", force=True)
    register_bulky(images)
    evaluator = _WaitInEvaluation(pipe)
    DistillTrainer.build_evaluator = classmethod(lambda *_: evaluator)
    period = 1 if part == "an evaluation on the way" else 0
    opts = [*OPTS, "TEST.EVAL_PERIOD", period]
    cfg = make_cfg(None if part == "plain training" else teacher, folder, *opts)
    if part == "evaluation alone":
        DistillTrainer.test(cfg, DistillTrainer.build_model(make_cfg(None, folder, *opts)))
        return
    with interruptible():
        trainer = start(cfg, seed=1)
        if "training" in part:
            trainer.register_hooks([_WaitInStep(pipe)])
        trainer.train()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    SERVER.set_forkserver_preload(PRELOAD)
    folder = tmp_path_factory.mktemp("mixed")
    write_images(folder)
    return folder


def _is_alive(pid):
    try:
        # The state stands behind the name. Z: ended, and not waited for.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


PARTS = {
    # Data workers of training live on during an evaluation.
    "training": WORKERS,
    "plain training": WORKERS,
    "an evaluation on the way": 2 * WORKERS,
    "evaluation alone": WORKERS,
}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("part", PARTS)
def test_data_workers_end_with_their_parent(images, teacher_files, tmp_path, part, number):
    ours, theirs = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=_run, args=(images, teacher_files, tmp_path, part, theirs))
    child.start()
    assert ours in wait([ours, child.sentinel], timeout=60), (tmp_path / "output.txt").read_text()
    workers = ours.recv()
    assert len(workers) == PARTS[part] and all(map(_is_alive, workers))
    time.sleep(0.5)  # The workers have filled their queues, and wait for their parent.
    os.kill(child.pid, number)
    child.join(60)
    stopped = -number if number == signal.SIGKILL or part == "evaluation alone" else 143
    assert child.exitcode == stopped, (tmp_path / "output.txt").read_text()
    until = time.monotonic() + SECONDS
    while any(map(_is_alive, workers)):
        assert time.monotonic() < until, f"{sum(map(_is_alive, workers))} data workers are alive"
        time.sleep(0.05)
    if stopped == 143:
        assert (tmp_path / "last_checkpoint").exists()
