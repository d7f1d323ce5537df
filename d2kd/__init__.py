# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Knowledge distillation for Detectron2 detectors.

Importing it registers d2kd's meta-architectures, paired forwards and synthetic datasets.
"""

import warnings

from .utils import opencv  # noqa: F401  isort: skip  first: it explains why cv2 cannot be imported

# torch warns of functions that Detectron2 and fvcore call; users of d2kd cannot change those.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")

from . import data, modeling  # noqa: F401  registration
from .config.defaults import add_d2kd_config
from .engine import DistillTrainer, build_distill_hooks

__version__ = "0.1.0"

__all__ = ["DistillTrainer", "__version__", "add_d2kd_config", "build_distill_hooks"]
