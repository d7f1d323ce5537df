# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Where a teacher's maps of single images are kept, and what an image is found by."""
