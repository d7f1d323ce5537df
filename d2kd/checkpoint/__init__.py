# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What a checkpoint holds, how it is written, and how it is read."""
