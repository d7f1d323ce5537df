# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Scripts that produce MODEL_ZOO.md and BENCHMARK.md; run from the repository, not installed."""
