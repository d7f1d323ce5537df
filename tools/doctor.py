#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Check a config before training, or compare two runs; the same as ``python -m d2kd.doctor``."""

import sys

from d2kd.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
