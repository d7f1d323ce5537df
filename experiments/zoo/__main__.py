# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""``python -m experiments.zoo``."""

from .command import main

if __name__ == "__main__":
    main()
