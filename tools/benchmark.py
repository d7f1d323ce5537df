#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Measure what a distilled step costs; the same as ``python -m d2kd.benchmark``."""

from d2kd.benchmark.command import main

if __name__ == "__main__":
    main()
