# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Reports of runs that were never made."""

from detectron2.config import get_cfg

from d2kd.config.defaults import add_d2kd_config
from d2kd.doctor.after.bootstrap import Difference
from d2kd.doctor.after.box_agreement import BoxAgreement
from d2kd.doctor.after.found_objects import FoundObjects
from d2kd.doctor.after.imitation import Imitation
from d2kd.doctor.after.report import Report, SetReport
from d2kd.doctor.after.run_folder import RunFolder
from d2kd.doctor.after.training_log import TrainingLog

GAIN = [
    Difference("AP", 32.0, 30.0, 1.0, 3.0),
    Difference("AP50", 50.0, 49.0, -1.0, 3.0),
    Difference("AP75", 33.0, 30.0, 1.0, 5.0),
    Difference("APs", 10.0, 9.0, 0.1, 2.0),
    Difference("APm", float("nan"), float("nan"), float("nan"), float("nan")),
    Difference("APl", 50.0, 50.0, -1.0, 1.0),
    Difference("AP cat & <dog>", 31.0, 28.0, 1.0, 5.0),
    Difference("AP bird", 33.0, 32.0, -0.5, 2.0),
]


def teacher_of(*aps):
    """Against the baseline of GAIN, sure everywhere; 10 above it where no AP is given."""
    given, rows = iter(aps), []
    for x in GAIN:
        gain = next(given, x.baseline + 10) - x.baseline if x.known else x.gain
        rows.append(Difference(x.name, x.baseline + gain, x.baseline, gain - 0.1, gain + 0.1))
    return rows


STRONG = teacher_of(40.0, 60.0, 42.0, 20.0, 60.0, 41.0, 39.0)


def make_set(differences=GAIN, teacher=STRONG, missed=(20, 5, 5), images=500):
    """missed: by the teacher, and how many of these the distilled student and baseline find."""
    found = [FoundObjects("all", 100, *missed, 70, 60)] if teacher else []
    nearness = (BoxAgreement(80, 0.9, 0.8, 0.1), BoxAgreement(80, 0.8, 0.7, 0.2))
    sources = {"distilled": "evaluated now", "baseline": "written by the run itself"}
    return SetReport(
        *("toy", images, 100, sources, list(differences), list(teacher), found),
        agreement=nearness if teacher else None,
    )


def evaluations(*aps):
    """metrics.json with an AP every 10 iterations."""
    return {10 * i: {"bbox/AP": ap} for i, ap in enumerate(aps, 1)}


def losses(value, detection=2.0, factor=1.0, name="feature"):
    row = {"loss_cls": detection, f"loss_distill_{name}": value * factor}
    return {i: {**row, f"loss_weight/{name}": factor} for i in (19, 39)}


def make_run(name, rows=None, *options):
    cfg = get_cfg()
    add_d2kd_config(cfg)
    cfg.merge_from_list(["DISTILL.ENABLED", name == "mine", *options])
    log = TrainingLog(rows or {})
    return RunFolder(f"output/{name}", cfg, "model_final.pth", {"iteration": 99}, log)


FAR, NEAR = (
    Imitation(64, {"feature": x, "cls": x}, {"feature": {"p2": x}}, {"p2": 1 / (1 + x)})
    for x in (9.0, 1.0)
)


def make_report(tested=None, ours=None, baseline=None, imitation=(NEAR, FAR), options=(), notes=()):
    return Report(
        make_run("mine", ours, *options),
        make_run("mine_baseline", baseline),
        list(notes),
        [tested or make_set()],
        imitation,
        "",
        1000,
        0,
    )
