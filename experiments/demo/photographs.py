# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The photographs of a demo lie below the folder of data sets, or the command that brings them."""

import os
import shutil
import tempfile
from pathlib import Path

from d2kd.data.datasets.dataset_root import dataset_root, is_writable
from d2kd.utils.errors import DatasetError
from experiments.demo.datasets import Clone

__all__ = ["ensure_photographs"]


def ensure_photographs(name: str, clone: Clone) -> None:
    """Do nothing if the data set is there; else make it from the clone.

    Args:
        name: of the data set's folder below ``$DETECTRON2_DATASETS``.
        clone: where it comes from.

    Raises:
        DatasetError: neither is there, or the folder cannot be written; with what to do.
    """
    root = dataset_root().resolve()
    if (root / name).is_dir():
        return
    source = root / clone.folder
    if not source.is_dir():
        raise DatasetError(
            f"the photographs are not in {root / name}. To get them, run\n"
            f"  git clone --depth 1 {clone.address} {source}\n"
            f"and this command again. If they are elsewhere, set DETECTRON2_DATASETS to the folder "
            f"that holds {name}/ (datasets/README.md shows what is in it)."
        )
    if not is_writable(root):
        raise DatasetError(
            f"{root} cannot be written, so {name}/ cannot be made in it from {source}: set "
            "DETECTRON2_DATASETS to a folder that can be written, and clone into it"
        )
    _arrange(clone, source, root / name)


def _arrange(clone: Clone, source: Path, target: Path) -> None:
    """Make the data set's folder; it appears complete or not at all."""
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        clone.arrange(source, unfinished)
        unfinished.chmod(0o755)  # mkdtemp's folders are private to their owner
        os.replace(unfinished, target)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{source} is no complete clone of {clone.address}: {error}. Delete it, clone again, "
            "and run this command again."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{target}: made from {source}, which may be deleted now", flush=True)
