# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Training in several processes, on GPUs or CPUs, on one machine or several."""
