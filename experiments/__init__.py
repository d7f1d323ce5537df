# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What makes MODEL_ZOO.md and BENCHMARK.md; not installed."""
