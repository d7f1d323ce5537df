#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Train a student with and without a teacher, and compare the three."""

import os
import sys
from pathlib import Path

# ``experiments`` is not installed; it is found beside this folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# As in train_net.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiments.demo.command import main  # noqa: E402

if __name__ == "__main__":
    main()
