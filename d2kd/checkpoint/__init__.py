# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a checkpoint holds, how it is written, and how it is read."""

from .atomic_write import remove_unfinished
from .best_checkpoint import BestCheckpoint
from .build import build_checkpointer, build_run_state
from .fingerprint import fingerprint_tensors
from .init_from_teacher import init_from_teacher
from .resume_hooks import add_resume_hooks, end_if_over, evaluate_step_before
from .start import check_start, describe_frozen_random, describe_other_classes, starting_names
from .student_config import write_student_config

__all__ = [
    "BestCheckpoint",
    "add_resume_hooks",
    "build_checkpointer",
    "build_run_state",
    "check_start",
    "describe_frozen_random",
    "describe_other_classes",
    "end_if_over",
    "evaluate_step_before",
    "fingerprint_tensors",
    "init_from_teacher",
    "remove_unfinished",
    "starting_names",
    "write_student_config",
]
