# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""model_best.pth and early stopping: exact on resume, and a metric that is not there is named."""

import multiprocessing
import shutil

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from d2kd.engine import DistillTrainer
from d2kd.engine.distributed.process_group import Group, join_group, leave_group
from d2kd.utils.errors import ConfigError
from tests.common.helpers import plain_cfg
from tests.common.many import PRELOAD
from tests.common.resumed_runs import (
    MIXED,
    differences,
    final_state,
    make_cfg,
    quiet,
    register_mixed,
    resume_from,
    start,
    write_images,
)

NAN = float("nan")
OPTS = ["SOLVER.MAX_ITER", 8, "DATASETS.TEST", (MIXED,), "TEST.EVAL_PERIOD", 2]
OPTS += ["SOLVER.CHECKPOINT_PERIOD", 3, "TEST.BEST_METRIC", "bbox/AP"]


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write_images(folder)
    register_mixed(folder)
    return folder


@pytest.fixture
def evaluate(monkeypatch):
    """Evaluations that give these AP, by the optimizer's steps so far; lists what was evaluated."""
    done = []

    def give(**by_step):
        values = {int(step.removeprefix("after_")): ap for step, ap in by_step.items()}

        def test(cls, cfg, model, evaluators=None):
            torch.rand(2)
            steps = give.trainer.iter + 1 if give.trainer.iter < give.trainer.max_iter else "end"
            done.append(steps)
            last = give.trainer.max_iter
            return {"bbox": {"AP": values[last if steps == "end" else steps], "AP50": 1.0}}

        monkeypatch.setattr(DistillTrainer, "test", classmethod(test))
        return done

    return give


def train(evaluate, folder, *opts, seed=1):
    trainer = evaluate.trainer = start(make_cfg(None, folder, *OPTS, *opts), seed)
    trainer.train()
    return trainer


def best(folder):
    return torch.load(folder / "model_best.pth", weights_only=True)


def killed(whole, folder, checkpoint):
    """The run as it stood when this checkpoint was its last and the best one was written."""
    resume_from(whole / checkpoint, folder)
    shutil.copy(whole / "model_best.pth", folder)


def test_it_holds_the_student_of_the_best_evaluation(evaluate, tmp_path):
    evaluate(after_2=NAN, after_4=31.0, after_6=30.0, after_8=31.0)
    train(evaluate, tmp_path, "SOLVER.CHECKPOINT_PERIOD", 4)
    found = best(tmp_path)
    assert set(found) == {"model", "classes", "iteration", "best"}
    assert found["best"] == {"metric": "bbox/AP", "value": 31.0, "iteration": 3}
    then = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    assert differences(found["model"], then["model"]) == []
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    model = build_model(plain_cfg())
    DetectionCheckpointer(model).load(str(tmp_path / "model_best.pth"))
    assert differences(dict(model.state_dict()), found["model"]) == []


def test_the_evaluation_after_the_last_step_counts(evaluate, tmp_path):
    evaluate(after_2=1.0, after_4=3.0, after_6=2.0, after_8=4.0)
    train(evaluate, tmp_path)
    assert best(tmp_path)["best"]["iteration"] == best(tmp_path)["iteration"] == 7
    assert differences(best(tmp_path)["model"], final_state(tmp_path)["model"]) == []


def test_without_a_finite_value_there_is_none(evaluate, tmp_path):
    evaluate(after_2=NAN, after_4=NAN, after_6=NAN, after_8=NAN)
    train(evaluate, tmp_path)
    assert not (tmp_path / "model_best.pth").exists()


# The best is before the checkpoint, after it, and in an evaluation that is made up for.
@pytest.mark.parametrize("ap", [(5.0, 4.0, 3.0, 2.0), (4.0, 5.0, 3.0, 2.0), (3.0, 4.0, 5.0, 2.0)])
def test_a_resumed_run_ends_with_the_same(evaluate, tmp_path, ap):
    evaluate(**{f"after_{2 * i + 2}": value for i, value in enumerate(ap)})
    train(evaluate, tmp_path / "whole")
    for checkpoint in ("model_0000002.pth", "model_0000005.pth"):
        folder = tmp_path / f"from_{checkpoint}"
        killed(tmp_path / "whole", folder, checkpoint)
        train(evaluate, folder, seed=9)
        assert differences(best(folder), best(tmp_path / "whole")) == []
        assert differences(final_state(folder), final_state(tmp_path / "whole")) == []


def test_a_best_checkpoint_of_steps_to_come_does_not_count(evaluate, tmp_path):
    evaluate(after_2=1.0, after_4=2.0, after_6=9.0, after_8=1.0)
    train(evaluate, tmp_path / "whole")
    killed(tmp_path / "whole", tmp_path / "changed", "model_0000002.pth")
    evaluate(after_4=2.0, after_6=3.0, after_8=1.0)
    train(evaluate, tmp_path / "changed", "SOLVER.BASE_LR", 0.1)
    assert best(tmp_path / "changed")["best"]["value"] == 3.0


def test_a_longer_training_keeps_the_best_of_the_shorter_one(evaluate, tmp_path):
    evaluate(after_2=1.0, after_4=5.0, after_6=4.0, after_8=3.0)
    train(evaluate, tmp_path, "SOLVER.MAX_ITER", 4)
    # It was found after the last checkpoint had been written.
    assert best(tmp_path)["best"]["value"] == 5.0
    train(evaluate, tmp_path)
    assert best(tmp_path)["best"] == {"metric": "bbox/AP", "value": 5.0, "iteration": 3}


def test_a_best_checkpoint_that_is_gone_is_said(evaluate, tmp_path, caplog):
    evaluate(after_2=9.0, after_4=5.0, after_6=4.0, after_8=3.0)
    train(evaluate, tmp_path / "whole")
    resume_from(tmp_path / "whole/model_0000002.pth", tmp_path / "moved")
    train(evaluate, tmp_path / "moved")
    assert "was 9.0000, of iteration 1, but there is no model_best.pth of it" in caplog.text
    assert best(tmp_path / "moved")["best"]["value"] == 5.0


def test_another_metric_begins_anew(evaluate, tmp_path, caplog):
    evaluate(after_2=9.0, after_4=5.0, after_6=4.0, after_8=3.0)
    train(evaluate, tmp_path / "whole")
    killed(tmp_path / "whole", tmp_path / "other", "model_0000005.pth")
    train(evaluate, tmp_path / "other", "TEST.BEST_METRIC", "bbox/AP50")
    assert "TEST.BEST_METRIC was 'bbox/AP', is 'bbox/AP50'" in caplog.text
    assert best(tmp_path / "other")["best"]["metric"] == "bbox/AP50"


def test_training_ends_where_it_does_not_improve(evaluate, tmp_path):
    done = evaluate(after_2=3.0, after_4=3.0, after_6=2.0)
    trainer = train(evaluate, tmp_path, "TEST.STOP_AFTER", 2)
    assert done == [2, 4, 6], "the last evaluation is not repeated"
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    final = final_state(tmp_path)
    assert final["iteration"] == 5 and trainer.iter == trainer.max_iter == 6
    assert differences(final["model"], dict(trainer.model.state_dict())) == []
    assert (tmp_path / "student.yaml").is_file()
    assert best(tmp_path)["iteration"] == 1
    # A run that is over is evaluated when it is resumed, as any other.
    trainer = train(evaluate, tmp_path, "TEST.STOP_AFTER", 2)
    assert done == [2, 4, 6, "end"] and trainer.iter == 6
    assert differences(final_state(tmp_path), final) == []
    assert best(tmp_path)["iteration"] == 1


def test_an_early_end_is_exact_on_resume(evaluate, tmp_path):
    done = evaluate(after_2=3.0, after_4=2.0, after_6=2.0)
    train(evaluate, tmp_path / "whole", "TEST.STOP_AFTER", 2)
    assert (tmp_path / "whole/model_0000005.pth").exists()
    # Killed before it, and in the evaluation that ends it.
    for checkpoint in ("model_0000002.pth", "model_0000005.pth"):
        folder = tmp_path / checkpoint[:-4]
        killed(tmp_path / "whole", folder, checkpoint)
        done.clear()
        train(evaluate, folder, "TEST.STOP_AFTER", 2, seed=9)
        assert done[-1] == 6
        assert differences(final_state(folder), final_state(tmp_path / "whole")) == []
        assert differences(best(folder), best(tmp_path / "whole")) == []


def test_more_patience_lets_a_run_that_ended_go_on(evaluate, tmp_path):
    evaluate(after_2=3.0, after_4=2.0, after_6=2.0, after_8=5.0)
    train(evaluate, tmp_path, "TEST.STOP_AFTER", 2)
    train(evaluate, tmp_path, "TEST.STOP_AFTER", 3)
    assert final_state(tmp_path)["iteration"] == best(tmp_path)["iteration"] == 7


def test_an_unknown_metric_names_those_there_are_and_loses_nothing(evaluate, tmp_path):
    evaluate(after_2=3.0, after_4=4.0, after_6=2.0, after_8=1.0)
    with pytest.raises(ConfigError, match="gives bbox/AP, bbox/AP50: .*Did you mean 'bbox/AP50'"):
        train(evaluate, tmp_path, "TEST.BEST_METRIC", "bbox/AP51")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    done = evaluate(after_2=3.0, after_4=4.0, after_6=2.0, after_8=1.0)
    done.clear()
    train(evaluate, tmp_path)
    assert done == [2, 4, 6, "end"] and best(tmp_path)["iteration"] == 3


def _one_of_two(rank, images, folder, address):
    """As Detectron2's evaluators do, only the main process gives results."""
    quiet()
    register_mixed(images)
    join_group(Group("cpu", 2, address=address), rank)
    values = iter([3.0, 2.0, 2.0])

    def test(cls, cfg, model, evaluators=None):
        return {"bbox": {"AP": next(values)}} if rank == 0 else {}

    DistillTrainer.test = classmethod(test)
    opts = [*OPTS, "TEST.STOP_AFTER", 2, "SOLVER.IMS_PER_BATCH", 4]
    trainer = start(make_cfg(None, folder, *opts), 1 + rank)
    trainer.train()
    assert trainer.iter == 6
    with pytest.raises(ConfigError, match="gives bbox/AP: "):
        values = iter([3.0])
        start(make_cfg(None, folder / "unknown", *opts, "TEST.BEST_METRIC", "x"), 1 + rank).train()
    leave_group()


def test_all_processes_end_at_the_same_step(images, tmp_path):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([*PRELOAD, "resumed_runs"])
    (tmp_path / "unknown").mkdir()
    calls = [(rank, images, tmp_path, f"file://{tmp_path}/rendezvous") for rank in range(2)]
    children = [server.Process(target=_one_of_two, args=args) for args in calls]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert final_state(tmp_path)["iteration"] == 5 and best(tmp_path)["iteration"] == 1
