# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Scripts that produce MODEL_ZOO.md and BENCHMARK.md; run from the repository, not installed."""

import d2kd  # noqa: F401  before Detectron2: it filters torch's warnings of Detectron2's calls
