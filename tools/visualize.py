#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Draw what a config compares on training images; the same as ``python -m d2kd.visualize``."""

from d2kd.visualize.command import main

if __name__ == "__main__":
    main()
