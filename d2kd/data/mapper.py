# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Detectron2's mapper, in which an image that cannot be read is named, and may be skipped."""

import logging
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image

from ..config.defaults import BAD_IMAGES
from ..utils.end_with_parent import guard_data_worker
from ..utils.errors import ConfigError, DatasetError
from .map_cache.image_digest import DigestingMapper

__all__ = ["NamingMapper", "build_mapper"]

logger = logging.getLogger(__name__)


def why_unreadable(record: dict[str, Any], image_format: str) -> str | None:
    """What is wrong with a record's image file; None if it can be read and has its stated size."""
    try:
        image = read_image(record["file_name"], format=image_format)
        check_image_size(dict(record), image)
    except Exception as error:  # Pillow's decoders raise nearly anything
        same = isinstance(error, SizeMismatchError)
        return str(error) if same else f"{type(error).__name__}: {error}"
    return None


class NamingMapper:
    """Calls a mapper; where it fails because of the image file, says which.

    Nothing is read twice unless the mapper failed. A mapper that fails otherwise fails as it does.
    """

    def __init__(self, mapper: Callable, image_format: str, on_bad_image: str = "stop"):
        """
        Args:
            mapper: record -> training sample.
            image_format: INPUT.FORMAT.
            on_bad_image: "stop" raises; "skip" warns, with a count for each data worker, and
                returns None, for which Detectron2's loader takes another image.
        """
        if on_bad_image not in BAD_IMAGES:
            raise ConfigError(
                f"DATALOADER.BAD_IMAGES is {on_bad_image!r}: set it to one of {BAD_IMAGES}"
            )
        self.mapper = mapper
        self.image_format = image_format
        self.skip = on_bad_image == "skip"
        self.skipped = 0

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        # Here, because all loaders have this mapper; Detectron2's test loader has no other place.
        guard_data_worker()
        try:
            return self.mapper(record)
        except Exception as error:
            if "file_name" not in record:  # a mapper of one's own may read other records
                raise
            reason = why_unreadable(record, self.image_format)
            if reason is None:
                raise
            if not self.skip:
                raise DatasetError(
                    f"Image {record['file_name']} cannot be read: {reason}. Repair or remove it, "
                    "or set DATALOADER.BAD_IMAGES to 'skip' to train without such images."
                ) from error
        self.skipped += 1
        logger.warning(
            "Image %s cannot be read and is skipped (%s); %d skipped by this data worker so far",
            record["file_name"],
            reason,
            self.skipped,
        )
        return None


def build_mapper(cfg: CfgNode, is_train: bool, mapper: Callable | None = None) -> NamingMapper:
    """A mapper that names bad images; evaluation never skips, as its images are counted.

    Args:
        cfg: of the training.
        is_train: whether samples are for training.
        mapper: of one's own, record -> sample; None for Detectron2's own of ``cfg``.
    """
    on_bad_image = cfg.DATALOADER.BAD_IMAGES if is_train else "stop"
    if not is_train and cfg.MODEL.KEYPOINT_ON:
        # Detectron2 asks for the training sets' keypoint names, to flip images, which tests do not.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.KEYPOINT_ON = False
    mapper = mapper or DatasetMapper(cfg, is_train)
    cache = cfg.DISTILL.TEACHER.CACHE
    if is_train and cfg.DISTILL.ENABLED and cache:
        mapper = DigestingMapper(mapper, folder="" if cache == "memory" else cache)
    return NamingMapper(mapper, cfg.INPUT.FORMAT, on_bad_image)
