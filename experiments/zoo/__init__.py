# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What makes docs/zoo.md."""
