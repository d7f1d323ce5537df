# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Gradients summed over batches: the step of the joined batch, one synchronisation, one scaling."""

import inspect
import multiprocessing
from itertools import cycle

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils.env import seed_all_rng
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2kd.engine import DistillTrainer
from d2kd.engine.nonfinite import NonFiniteLossError, read_replay
from d2kd.engine.train_loop import AccumulatingAMPTrainer, AccumulatingTrainer
from tests.common.helpers import distill_cfg, make_batch, plain_cfg
from tests.common.many import PRELOAD

STEPS = 3
IN_MAIN = "async_write_metrics" in inspect.signature(SimpleTrainer.__init__).parameters
KEYWORDS = [{}] + IN_MAIN * [
    {"async_write_metrics": True},
    {"gather_metric_period": 2},
    {"zero_grad_before_forward": True},
]


class _Toy(nn.Module):
    """Two losses that are means over the rows of a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, batch):
        out = self.layer(batch)
        return {"loss_a": out[:, 0].square().mean(), "loss_b": out[:, 1].abs().mean()}


def _rows(parts, seed=2):
    """As many batches of two rows; joined, they are one."""
    return list(torch.randn(2 * parts, 3, generator=torch.Generator().manual_seed(seed)).split(2))


def _sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def _train(kind, model, batches, iterations, *args, **kwargs):
    trainer = kind(model, batches, _sgd(model), *args, **kwargs)
    trainer.train(0, iterations)
    return trainer


def _logged(trainer, name):
    values = trainer.storage.history(name).values()
    return [iteration for _, iteration in values], [value for value, _ in values]


def _joined(batches, steps):
    return [torch.cat(batches[i : i + steps]) for i in range(0, len(batches), steps)]


@pytest.mark.parametrize("keywords", KEYWORDS)
def test_the_step_of_the_joined_batch(keywords):
    batches = _rows(4 * STEPS)
    parts = _train(AccumulatingTrainer, _Toy(), batches, 4, STEPS, **keywords)
    whole = _train(SimpleTrainer, _Toy(), _joined(batches, STEPS), 4, **keywords)
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict())
    for name in ("loss_a", "loss_b", "total_loss"):
        found, expected = (dict(zip(*_logged(x, name))) for x in (parts, whole))
        assert len(found) == 4 // keywords.get("gather_metric_period", 1)
        assert found == pytest.approx(expected)
    if keywords.get("async_write_metrics"):
        assert parts.concurrent_executor._threads, "metrics were written by the training's thread"


def test_waiting_for_data_is_added_up(monkeypatch):
    clock = cycle([0.0, 2.0])
    monkeypatch.setattr("d2kd.engine.train_loop.time.perf_counter", lambda: next(clock))
    trainer = _train(AccumulatingTrainer, _Toy(), _rows(STEPS), 1, STEPS)
    assert trainer.storage.latest()["data_time"][0] == 2.0 * STEPS


class _CountingScaler(torch.amp.GradScaler):
    def __init__(self):
        super().__init__("cpu", init_scale=1024.0)
        self.calls = []

    def step(self, optimizer):
        self.calls.append("step")
        return super().step(optimizer)

    def update(self):
        self.calls.append("update")
        super().update()


def test_half_precision_is_scaled_once_a_step():
    batches, scaler = _rows(2 * STEPS), _CountingScaler()
    half = _train(AccumulatingAMPTrainer, _Toy(), batches, 2, STEPS, grad_scaler=scaler)
    assert scaler.calls == 2 * ["step", "update"]
    assert half.state_dict()["grad_scaler"]["scale"] == 1024.0
    full = _train(SimpleTrainer, _Toy(), _joined(batches, STEPS), 2)
    found, expected = half.model.layer.weight, full.model.layer.weight
    assert not torch.equal(found, expected), "it was computed in full precision"
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_a_gradient_that_overflows_skips_the_whole_step():
    batches, scaler = _rows(STEPS), _CountingScaler()
    batches[1][:] = 1e4  # its square is beyond half precision
    toy = _Toy()
    before = toy.layer.weight.clone()
    trainer = AccumulatingAMPTrainer(toy, batches, _sgd(toy), STEPS, grad_scaler=scaler)
    trainer._write_metrics = lambda *_: None
    trainer.run_step()
    assert torch.equal(toy.layer.weight, before) and scaler.get_scale() == 512.0


def _process(rank, address, results):
    """What one of two processes does: its half of the rows of every batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", address, rank=rank, world_size=2)
    model = DistributedDataParallel(_Toy())
    sent = []

    def count(state, bucket):
        sent.append(bucket.index())
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return work.then(lambda done: done.value()[0])

    model.register_comm_hook(None, count)
    mine = [batch[rank : rank + 1] for batch in _rows(2 * STEPS)]
    trainer = AccumulatingTrainer(model, mine, _sgd(model), STEPS)
    # What Detectron2 would gather for its log is another group's matter.
    trainer._write_metrics = lambda *_: None
    trainer.train(0, 2)
    weights = {k: v.tolist() for k, v in model.module.state_dict().items()}
    results.send((len(sent), weights))
    dist.destroy_process_group()


def test_processes_meet_once_a_step(tmp_path):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    pipes = [server.Pipe(duplex=False) for _ in range(2)]
    address = f"file://{tmp_path}/rendezvous"
    children = [server.Process(target=_process, args=(i, address, pipes[i][1])) for i in range(2)]
    for child in children:
        child.start()
    results = [ours.recv() for ours, _ in pipes]
    for child in children:
        child.join()
    assert [sent for sent, _ in results] == [2, 2]
    alone = _train(SimpleTrainer, _Toy(), _joined(_rows(2 * STEPS), STEPS), 2).model.state_dict()
    for _, weights in results:
        torch.testing.assert_close({k: torch.tensor(v) for k, v in weights.items()}, dict(alone))


# Every anchor and proposal is taken, so that nothing depends on how many random numbers are drawn.
ALL = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4096, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512]
ALL += ["MODEL.RESNETS.NORM", "FrozenBN", "DISTILL.FEATURE.WEIGHT", 0.01, "SOLVER.MAX_ITER", 2]


def _distilled(teacher_files, folder, batches, *opts):
    cfg = distill_cfg(teacher_files, *ALL, "OUTPUT_DIR", str(folder), *opts)
    seed_all_rng(1)

    class Given(DistillTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return batches

    trainer = Given(cfg)
    trainer.train()
    return trainer


@pytest.mark.usefixtures("train_set")
def test_a_distilled_detector_takes_the_step_of_the_joined_batch(teacher_files, tmp_path):
    """Two equal halves have the same numbers of positives, by which losses are normalised."""
    # Images on which rounding moves no region across a gate, and no unit across 0, in two steps.
    half = [make_batch(seed=i) for i in (2, 3)]
    twice = [batch for batch in half for _ in range(2)]
    opts = ["SOLVER.ACCUMULATE_STEPS", 2]
    parts = _distilled(teacher_files, tmp_path / "parts", twice, *opts)
    whole = _distilled(teacher_files, tmp_path / "whole", [batch + batch for batch in half])
    torch.testing.assert_close(
        parts.model.state_dict(), whole.model.state_dict(), rtol=1e-5, atol=1e-7
    )
    gradients = ([p.grad for p in x.model.parameters()] for x in (parts, whole))
    for found, expected in zip(*gradients):
        if found is not None:
            assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-9
    for name in ("loss_distill_feature", "loss_rpn_cls", "loss_ratio/feature", "loss_weight/cls"):
        found, expected = (x.storage.history(name).latest() for x in (parts, whole))
        assert found == pytest.approx(expected, rel=1e-4), name


@pytest.mark.usefixtures("train_set")
def test_one_batch_is_the_stock_step_and_clipping_is_of_the_sum(teacher_files, tmp_path):
    cfg = plain_cfg("OUTPUT_DIR", str(tmp_path))
    assert type(DistillTrainer(cfg)._trainer).run_step is SimpleTrainer.run_step
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-4]
    clip += ["SOLVER.ACCUMULATE_STEPS", 2]
    batches = [make_batch(seed=i) for i in range(4)]
    trainer = _distilled(teacher_files, tmp_path, batches, *clip)
    largest = max(p.grad.abs().max() for p in trainer.model.parameters() if p.grad is not None)
    assert largest == pytest.approx(1e-4)


def _break_in_the_second_batch(trainer, parameter):
    """The parameter is not a number there alone."""
    value, calls = parameter.detach().clone(), []

    def before(*_):
        calls.append(1)
        with torch.no_grad():
            parameter.copy_(value * (float("nan") if len(calls) == 2 else 1))

    trainer.model.register_forward_pre_hook(before)


@pytest.mark.usefixtures("train_set")
@pytest.mark.parametrize(
    "name, message",
    [
        ("distill_losses.feature.adapters.p3.weight", "loss_distill_feature is nan on level p3"),
        ("student.backbone.fpn_output2.bias", "own forward failed"),
    ],
)
def test_the_batch_that_is_not_finite_is_found_among_all(teacher_files, tmp_path, name, message):
    opts = ["OUTPUT_DIR", str(tmp_path), "SOLVER.ACCUMULATE_STEPS", STEPS]
    trainer = DistillTrainer(distill_cfg(teacher_files, *opts))
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda _, inputs: seen.append([x["file_name"] for x in inputs[0]])
    )
    _break_in_the_second_batch(trainer, trainer.model.get_parameter(name))
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        trainer.train()
    assert f"images: {', '.join(seen[1])}\n" in str(caught.value)
    batch = read_replay(str(tmp_path / "nonfinite_0000000.pth"))["batch"]
    assert [x["file_name"] for x in batch] == seen[1]
