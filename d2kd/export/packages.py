# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The packages of the extra 'export', which nothing else of d2kd needs."""

import importlib
from types import ModuleType

from ..utils.errors import ConfigError
from ..utils.text import first_line

__all__ = ["need_package"]


def need_package(name: str) -> ModuleType:
    """Import a package or one of its modules.

    Raises:
        ConfigError: it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"the export needs the package {package}, which cannot be imported "
            f"({first_line(error)}): pip install 'd2kd[export]'"
        ) from error
