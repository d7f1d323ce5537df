# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Finding d2kd's configs and shipped weights by name, as Detectron2's model_zoo does."""

from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from ..utils.errors import ConfigError
from ..utils.text import did_you_mean

__all__ = ["CONFIGS", "D2kdPathHandler", "find_config_file", "get_config_file"]

# In a checkout this is a link to the folder ``configs`` of the repository.
CONFIGS = Path(__file__).resolve().parent / "configs"
_PREFIX = "d2kd://"


def find_config_file(name: str) -> str | None:
    """The path of a config by its name below ``configs``; None if there is none."""
    path = CONFIGS / name
    return str(path) if path.suffix == ".yaml" and path.is_file() else None


def get_config_file(name: str) -> str:
    """The path of one of d2kd's configs.

    Args:
        name: below ``configs``, e.g. "coco/TAR/faster_rcnn_R_50_from_R_101_FPN_1x.yaml".

    Raises:
        ConfigError: there is no such config; names the one that was likely meant.
    """
    path = find_config_file(name)
    if path is None:
        known = [str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")]
        raise ConfigError(f"{name!r} is not one of d2kd's configs.{did_you_mean(name, known)}")
    return path


class D2kdPathHandler(PathHandler):
    """Resolves "d2kd://shapes/teacher/x.pth" to a file below ``configs``."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(CONFIGS / path.removeprefix(_PREFIX))

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).is_file()

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).exists()

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(D2kdPathHandler())
