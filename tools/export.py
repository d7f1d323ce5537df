#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Write a trained student as ONNX or TorchScript; the same as ``python -m d2kd.export``."""

from d2kd.export.command import main

if __name__ == "__main__":
    main()
