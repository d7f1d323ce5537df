# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A cache of what the frozen teacher computes for single images."""
