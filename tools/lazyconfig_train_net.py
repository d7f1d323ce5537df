#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Train a detector of a LazyConfig, with or without a teacher, or evaluate it.

    python tools/lazyconfig_train_net.py --config-file my_student.py [--num-gpus 8] [--resume] \\
        [--eval-only] [--import my_module] [train.max_iter=1000 ...]

The config is one of Detectron2's tools/lazyconfig_train_net.py. A dict "distill" in it names the
teacher and the losses; without it the detector is trained alone. docs/lazyconfig.md has an example.
"""

import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train_net.py

from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import d2kd  # noqa: F401  registration
from d2kd.checkpoint.last_checkpoint import find_last
from d2kd.checkpoint.output_dir import prepare_output
from d2kd.checkpoint.weights import load_weights_strict, resolve_weights
from d2kd.config.user_modules import import_modules
from d2kd.engine import LazyTrainer
from d2kd.engine.distributed.launch import add_launch_options, launch
from d2kd.engine.interrupt import interruptible
from d2kd.engine.lazy_keys import has_key, lazy_keys
from d2kd.engine.lazy_trainer import evaluate_lazy
from d2kd.modeling.lazy_teacher import load_lazy
from d2kd.utils.command_line import add_import_option, exit_on_user_error
from d2kd.utils.errors import ConfigError


def load(args) -> Any:
    """Import the user's modules, run the config file, and apply ``key=value``."""
    import_modules(args.modules)
    if not os.path.isfile(args.config_file):
        raise ConfigError(f"--config-file {args.config_file} is not there: set it to a .py file")
    lazy = load_lazy(args.config_file, "--config-file")
    # Detectron2 would add a misspelt key, which nothing reads.
    given = {word: word.split("=")[0] for word in args.opts if not word.startswith(("+", "~"))}
    unknown = [word for word, key in given.items() if not has_key(lazy, key)]
    if unknown:
        raise ConfigError(
            f"the command line: {args.config_file} has no {', '.join(unknown)}: correct the key, "
            "or write +key=value to add one"
        )
    try:
        return LazyConfig.apply_overrides(lazy, args.opts)
    except Exception as error:  # of omegaconf and hydra
        raise ConfigError(f"the command line: {error}") from error


def evaluate(lazy, resume: bool):
    """Evaluate the student of ``train.init_checkpoint``, or of the last checkpoint."""
    last = find_last(lazy.train.output_dir) if resume else None
    weights = last.path if last else lazy.train.init_checkpoint
    if not weights:
        raise ConfigError(
            "--eval-only needs a trained student: set train.init_checkpoint to its checkpoint, or "
            "add --resume for the last one in train.output_dir"
        )
    model = instantiate(lazy.model).to(lazy.train.device)
    path = resolve_weights(weights, "train.init_checkpoint")
    load_weights_strict(model, weights, path, "student")
    return evaluate_lazy(lazy, model)


def main(args):
    """Train or evaluate, in this process; several processes each call it."""
    lazy = load(args)
    folder = lazy_keys(lazy).OUTPUT_DIR
    prepare_output(folder)
    setup_logger(folder, distributed_rank=comm.get_rank(), name="d2kd")
    default_setup(lazy, args)
    if args.eval_only:
        return evaluate(lazy, args.resume)
    with interruptible():
        trainer = LazyTrainer(lazy)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


if __name__ == "__main__":
    parser = default_argument_parser()
    add_import_option(parser)
    add_launch_options(parser)
    args = parser.parse_args()
    with exit_on_user_error(args.traceback):
        launch(main, args, lazy_keys(load(args)), (args,))
