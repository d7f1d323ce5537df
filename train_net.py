#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Train a detector, with or without a teacher, or evaluate it.

    python train_net.py --config-file configs/coco/TAR/faster_rcnn_R_50_from_R_101_FPN_1x.yaml \\
        [--num-gpus 8] [--resume] [--eval-only] [--eval-teacher [AP]] \\
        [--import my_module] [KEY VALUE ...]
    torchrun --nproc_per_node 8 train_net.py --config-file ...

The options are those of Detectron2's tools/train_net.py. The keys DISTILL.* of the config name the
teacher and the losses. A mistake in the set-up is printed without a traceback (--traceback shows
it), with exit status 2.
"""

import os
from argparse import Namespace
from collections import OrderedDict

# OpenMP's threads wait for each other by spinning. Where other programs use the CPU too, they spin
# in vain for most of the time. PyTorch reads this when it is loaded; docs/training.md has figures.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from d2kd import DistillTrainer
from d2kd.checkpoint import describe_other_classes
from d2kd.checkpoint.last_checkpoint import find_last
from d2kd.checkpoint.output_dir import prepare_output
from d2kd.checkpoint.weights import load_weights_strict, resolve_weights
from d2kd.config.load import load_config
from d2kd.config.unused_keys import warn_of_unused_keys
from d2kd.data import check_num_classes, check_registered_sets, register_custom_datasets
from d2kd.engine.distributed.launch import add_launch_options, launch
from d2kd.engine.interrupt import interruptible
from d2kd.evaluation import check_test_sets, verify_expected_results
from d2kd.modeling.build import build_teacher, read_teacher_config
from d2kd.modeling.class_names import check_class_names, teacher_class_names
from d2kd.utils.command_line import add_import_option, exit_on_user_error
from d2kd.utils.errors import ConfigError, PairMismatchError, WeightsError


def setup(args) -> CfgNode:
    """Read and check the config, prepare OUTPUT_DIR, start logging."""
    cfg = load_config(args.config_file, args.opts, args.modules)
    prepare_output(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2kd")
    warn_of_unused_keys(cfg)
    register_custom_datasets(cfg)
    check_registered_sets(cfg, train=not args.eval_only)
    check_num_classes(cfg)
    check_test_sets(cfg, train=not args.eval_only)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def eval_student(cfg: CfgNode, resume: bool) -> OrderedDict:
    """Evaluate the student of the config; no teacher is built."""
    weights, path = find_student(cfg, resume)
    plain = cfg.clone()
    plain.defrost()
    plain.DISTILL.ENABLED = False
    model = DistillTrainer.build_model(plain)
    loaded = load_weights_strict(model, weights, path, "student")
    others = describe_other_classes(cfg, loaded)
    if others:
        raise WeightsError(f"{others}: set DATASETS.TEST to sets of its classes, in their order")
    return DistillTrainer.test_all(plain, model)


def find_student(cfg: CfgNode, resume: bool) -> tuple[str, str]:
    """The address of the trained student's checkpoint, and its local file.

    Raises:
        ConfigError: neither MODEL.WEIGHTS nor --resume names a checkpoint.
        WeightsError: MODEL.WEIGHTS cannot be used.
        ResumeError: the last checkpoint cannot be used.
    """
    if resume:
        last = find_last(cfg.OUTPUT_DIR)
        if last is None:
            raise ConfigError(
                "--eval-only --resume: there is no last_checkpoint in OUTPUT_DIR "
                f"{cfg.OUTPUT_DIR}: set OUTPUT_DIR to the folder of a run, or leave out --resume "
                "and set MODEL.WEIGHTS"
            )
        return last.path, last.path
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "--eval-only needs a trained student: set MODEL.WEIGHTS to its checkpoint, or add "
            "--resume for the last one in OUTPUT_DIR"
        )
    return cfg.MODEL.WEIGHTS, resolve_weights(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")


def eval_teacher(cfg: CfgNode, least: float | None = None) -> OrderedDict:
    """Evaluate the teacher on the student's test sets, with its own INPUT keys.

    The random streams are not advanced: a training that follows is the same with and without this.

    Args:
        cfg: the student's.
        least: the AP that the teacher must have on every test set.

    Raises:
        PairMismatchError: its classes are not those of the data sets, or its AP is lower.
    """
    teacher_cfg = read_teacher_config(cfg)
    # The same images, the same number of detections and the same metrics as the student's.
    teacher_cfg.DATASETS, teacher_cfg.TEST = cfg.DATASETS, cfg.TEST
    teacher_cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "teacher")
    with torch.random.fork_rng(devices=[]):
        teacher = build_teacher(teacher_cfg, teacher_cfg.INPUT.FORMAT)
        # Its boxes are counted class by class, whatever the losses compare.
        classes = teacher_class_names(cfg, read_teacher_config(cfg), teacher.classes)
        check_class_names(cfg, classes, frozenset({"logits"}))
        results = DistillTrainer.test(teacher_cfg, teacher.model)
    if least is not None:
        check_teacher_ap(results, least, teacher_cfg.MODEL.WEIGHTS)
    return results


def check_teacher_ap(results: OrderedDict, least: float, weights: str) -> None:
    """Stop every process if the teacher's AP on a test set is too low.

    Args:
        results: of ``DistillTrainer.test``; empty in all processes but the first.
        least: what --eval-teacher asks for.
        weights: the teacher's, for the message.

    Raises:
        PairMismatchError: it is; names each AP.
    """
    found = {"": results} if "bbox" in results else results
    aps = {name: tasks["bbox"]["AP"] for name, tasks in found.items() if "bbox" in tasks}
    problem = ""
    if comm.is_main_process() and not (aps and all(ap >= least for ap in aps.values())):
        got = ", ".join(f"{ap:.1f} {name and f'on {name}'}".strip() for name, ap in aps.items())
        problem = (
            f"the teacher's box AP is {got or 'not measured'}, below the {least:g} that "
            f"--eval-teacher asks for: check DISTILL.TEACHER.WEIGHTS {weights} and the order of "
            "its classes, or lower --eval-teacher"
        )
    problem = comm.all_gather(problem)[0]
    if problem:
        raise PairMismatchError(problem)


def parse_args() -> Namespace:
    """Read the command line; the AP after --eval-teacher may be left out."""
    parser = default_argument_parser()
    parser.add_argument(
        "--eval-teacher",
        nargs="?",
        const="",
        metavar="AP",
        help="evaluate the teacher before anything else; below this AP, if one is given, stop",
    )
    add_import_option(parser)
    add_launch_options(parser)
    args = parser.parse_args()
    word, args.least_teacher_ap = args.eval_teacher, None
    args.eval_teacher = word is not None
    if word:
        try:
            args.least_teacher_ap = float(word)
        except ValueError:  # it is the first KEY
            args.opts.insert(0, word)
    return args


def main(args):
    """Train or evaluate, in this process; several processes each call it."""
    cfg = setup(args)
    if args.eval_teacher:
        eval_teacher(cfg, args.least_teacher_ap)
    if args.eval_only:
        results = eval_student(cfg, args.resume)
        if comm.is_main_process():
            verify_expected_results(cfg, results)
        return results
    with interruptible():
        trainer = DistillTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


if __name__ == "__main__":
    args = parse_args()
    with exit_on_user_error(args.traceback):
        launch(main, args, load_config(args.config_file, args.opts, args.modules), (args,))
