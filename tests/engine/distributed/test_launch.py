# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Processes: how many a command line means, how they meet, and how all end when one does."""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from d2kd.engine.distributed import worker_processes as children
from d2kd.engine.distributed.launch import ConfigError, check_images, launch, plan_group
from d2kd.engine.distributed.process_group import Group
from d2kd.engine.distributed.worker_processes import run_children
from tests.common.helpers import plain_cfg
from tests.common.many import fast_start, free_address, options

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "6",
    "LOCAL_WORLD_SIZE": "3",
    "GROUP_RANK": "1",
}
ADDRESS = "tcp://10.0.0.1:1234"


@pytest.mark.parametrize(
    "device, given, expected",
    [
        ("cpu", {}, ("cpu", 1, 1, 0)),
        ("cpu", {"num_processes": 3}, ("cpu", 3, 1, 0)),
        ("cpu", {"num_gpus": 0}, ("cpu", 1, 1, 0)),
        ("cuda", {"num_gpus": 4}, ("cuda", 4, 1, 0)),
        ("cuda:1", {}, ("cuda", 1, 1, 0)),
        ("cuda", {"num_gpus": 4, "num_machines": 2, "machine_rank": 1}, ("cuda", 4, 2, 1)),
    ],
)
def test_what_a_command_line_means(monkeypatch, device, given, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    group = plan_group(options(dist_url=ADDRESS, **given), device)
    assert group == Group(*expected, ADDRESS)
    assert group.rank(0) == expected[1] * expected[3]


@pytest.mark.parametrize("device, gpus", [("cpu", 0), ("cuda", 3)])
def test_torchrun_has_started_them(monkeypatch, device, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert plan_group(options(), device) == Group(device, 3, 2, 1, "env://")


@pytest.mark.parametrize(
    "device, given, message",
    [
        ("cpu", {"num_gpus": 2}, "use --num-processes 2"),
        ("cpu", {"num_processes": 0}, "--num-processes is 0: set it to 1 or more"),
        ("cuda", {"num_processes": 2}, "use --num-gpus 2, or set MODEL.DEVICE to cpu"),
        ("cuda", {"num_gpus": 2}, "this machine has 1: lower --num-gpus"),
        ("cuda:0", {"num_gpus": 2}, "MODEL.DEVICE is 'cuda:0', .* set it to 'cuda'"),
        ("cpu", {"num_machines": 2}, "set it to tcp://HOST:PORT"),
        (
            "cpu",
            {"num_machines": 2, "machine_rank": 2, "dist_url": ADDRESS},
            "--machine-rank is 2: with --num-machines 2 set it to 0 .. 1",
        ),
    ],
)
def test_what_cannot_be_started_names_the_option(monkeypatch, device, given, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=message):
        plan_group(options(**given), device)


@pytest.mark.parametrize("device, given", [("cuda", {}), ("cuda:0", {}), ("cuda", {"num_gpus": 2})])
def test_no_gpu_names_the_key(monkeypatch, device, given):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=f"MODEL.DEVICE is {device} .*: add MODEL.DEVICE cpu"):
        plan_group(options(**given), device)


@pytest.mark.parametrize(
    "environment, given, message",
    [
        ({}, {"num_processes": 2}, "leave out --num-processes"),
        ({}, {"num_gpus": 2, "num_machines": 2}, "leave out --num-gpus, --num-machines"),
        ({"WORLD_SIZE": "5"}, {}, "give every machine the same --nproc_per_node"),
    ],
)
def test_options_that_contradict_torchrun(monkeypatch, environment, given, message):
    for name, value in {**TORCHRUN, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        plan_group(options(**given), "cpu")


def test_two_trainings_of_one_user_do_not_meet():
    one, other = (plan_group(options(num_processes=2), "cpu").address for _ in range(2))
    assert one != other and one.startswith("tcp://127.0.0.1:")


def test_the_batch_is_shared_equally():
    check_images(4, 2)
    with pytest.raises(ConfigError, match="is 5 for 2 processes.* set it to 4 or 6$"):
        check_images(5, 2)
    with pytest.raises(ConfigError, match="is 2 for 3 processes.* set it to 3$"):
        check_images(2, 3)


def test_the_batch_is_checked_before_anything_starts():
    args, never = options(num_processes=3), pytest.fail
    with pytest.raises(ConfigError, match="SOLVER.IMS_PER_BATCH is 2"):
        launch(never, args, plain_cfg())
    called = []
    launch(called.append, options(), plain_cfg("SOLVER.IMS_PER_BATCH", 3), ["here"])
    assert called == ["here"], "one process is not started anew"


def _record(folder):
    ranks = torch.zeros(comm.get_world_size())
    ranks[comm.get_rank()] = 10 * comm.get_local_size() + comm.get_local_rank()
    dist.all_reduce(ranks)
    torch.save(ranks, folder / f"rank{comm.get_rank()}.pth")


def test_two_machines_on_loopback(monkeypatch, tmp_path):
    fast_start(monkeypatch)
    given = {"num_processes": 2, "num_machines": 2, "dist_url": free_address()}
    cfg = plain_cfg("SOLVER.IMS_PER_BATCH", 4)
    one = threading.Thread(
        target=launch, args=(_record, options(machine_rank=1, **given), cfg, (tmp_path,))
    )
    one.start()
    launch(_record, options(machine_rank=0, **given), cfg, (tmp_path,))
    one.join()
    for rank in range(4):
        found = torch.load(tmp_path / f"rank{rank}.pth")
        assert found.tolist() == [20, 21, 20, 21], "local rank of two on each machine"


ERRORS = {
    "raises": ValueError("something of its own"),
    "is mistaken": ConfigError("set a key"),
}


def _one_fails(how, folder):
    """Rank 1 ends while rank 0 waits for it, until it is asked to end."""

    def end(*_):
        (folder / "asked").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    if comm.get_rank() == 1:
        if how in ERRORS:
            raise ERRORS[how]
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


def test_an_error_of_one_ends_all_and_is_shown(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(children, "GRACE", 0.2)
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        launch(_one_fails, options(num_processes=2), plain_cfg(), ["raises", tmp_path])
    assert ended.value.code == 1 and time.monotonic() - start < 60
    text = capfd.readouterr().err
    assert "Process rank 1:\nTraceback" in text and "ValueError: something of its own" in text
    assert "rank 1 ended with status 1, its error is printed above" in text


@pytest.mark.parametrize("shown", [False, True])
def test_a_user_error_of_one_is_its_message_alone(monkeypatch, tmp_path, capfd, shown):
    monkeypatch.setattr(children, "GRACE", 0.2)
    args = options(num_processes=2)
    args.traceback = shown
    with pytest.raises(SystemExit) as ended:
        launch(_one_fails, args, plain_cfg(), ["is mistaken", tmp_path])
    assert ended.value.code == 2
    text = capfd.readouterr().err
    assert ("Traceback" in text) == shown and "set a key\nrank 1 ended with status 2" in text


def test_a_process_that_is_killed_ends_all(monkeypatch, tmp_path, capfd):
    fast_start(monkeypatch)
    monkeypatch.setattr(children, "GRACE", 0.2)
    with pytest.raises(SystemExit) as ended:
        launch(_one_fails, options(num_processes=2), plain_cfg(), ["is killed", tmp_path])
    assert (tmp_path / "asked").exists(), "the other could not clear up"
    assert ended.value.code == 1 and "rank 1 was ended by SIGKILL" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def _ignore_and_wait(folder, number):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with (folder / str(number)).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("here")
        file.flush()
        time.sleep(3600)


def _wait_for_files(folder, count, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = [path for path in folder.iterdir() if path.read_text() == "here"]
        if len(found) == count:
            return found
        time.sleep(0.02)
    pytest.fail(f"{count} processes did not start in {seconds} s")


def _calls(folder):
    return {"a": (folder, 0), "b": (folder, 1)}


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on(monkeypatch, tmp_path, number, status):
    """Children that ignore SIGTERM are killed after the grace, when it is sent again."""
    fast_start(monkeypatch)
    monkeypatch.setattr(children, "GRACE", 0.2)
    before = signal.getsignal(number)

    def press():
        _wait_for_files(tmp_path, 2)
        os.kill(os.getpid(), number)
        if number == signal.SIGTERM:
            time.sleep(0.5)
            assert multiprocessing.active_children(), "the children may finish their step"
            monkeypatch.setattr("d2kd.engine.interrupt.SAME_REQUEST", 0.0)
            os.kill(os.getpid(), number)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(SystemExit) as ended:
        run_children(_ignore_and_wait, _calls(tmp_path))
    presser.join()
    assert ended.value.code == status and signal.getsignal(number) is before
    assert not multiprocessing.active_children()


def _end_in_order(folder, number):
    """Write down each signal; end a while after SIGTERM, the second process last."""
    received = []
    for expected in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(expected, lambda signum, _: received.append(signum))
    (folder / str(number)).write_text("here")
    while signal.SIGTERM not in received:
        time.sleep(0.02)
    time.sleep(0.5 * number)
    (folder / f"ended{number}").write_text(" ".join(map(str, map(int, received))))
    sys.exit(143)


def test_the_children_end_in_order_after_sigterm_and_go_on_after_sigusr1(monkeypatch, tmp_path):
    fast_start(monkeypatch)
    monkeypatch.setattr(children, "GRACE", 0.1)

    def press():
        _wait_for_files(tmp_path, 2)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    threading.Thread(target=press).start()
    with pytest.raises(SystemExit) as ended:
        run_children(_end_in_order, _calls(tmp_path))
    assert ended.value.code == 143
    assert [(tmp_path / f"ended{i}").read_text() for i in (0, 1)] == ["10 15", "10 15"]


def _parent(folder):
    children.START_METHOD = "fork"
    run_children(_ignore_and_wait, _calls(folder))


def _is_alive(file):
    """Whether the process that wrote it still holds it."""
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_nobody_outlives_a_parent_that_is_killed(monkeypatch, tmp_path):
    fast_start(monkeypatch)
    parent = multiprocessing.get_context("forkserver").Process(target=_parent, args=(tmp_path,))
    parent.start()
    files = _wait_for_files(tmp_path, 2)
    assert all(map(_is_alive, files))
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    until = time.monotonic() + 10
    while any(map(_is_alive, files)):
        assert time.monotonic() < until, "children of a dead parent are alive"
        time.sleep(0.02)
