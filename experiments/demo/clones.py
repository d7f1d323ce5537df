# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""From the clones of two git repositories to data sets in the format of Pascal VOC."""

import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = ["BCCD", "CARDS", "arrange_bccd", "arrange_cards"]

BCCD = "https://github.com/Shenggan/BCCD_Dataset"
CARDS = (
    "https://github.com/EdjeElectronics/"
    "TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10"
)


def arrange_bccd(clone: Path, folder: Path) -> None:
    """Copy the three folders of BCCD that are read.

    Args:
        clone: of the repository.
        folder: an empty one.

    Raises:
        FileNotFoundError: the clone lacks one of them.
    """
    for name in ("Annotations", "ImageSets", "JPEGImages"):
        shutil.copytree(clone / "BCCD" / name, folder / name)


def arrange_cards(clone: Path, folder: Path) -> None:
    """Bring both folders of photographs together; every fifth one for training is for validation.

    Args, errors: as those of ``arrange_bccd``.
    """
    names = {split: _copy(clone / "images" / split, folder) for split in ("train", "test")}
    splits = {
        "test": names["test"],
        "trainval": names["train"],
        "val": names["train"][4::5],
        "train": [name for i, name in enumerate(names["train"], 1) if i % 5],
    }
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, found in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in found))


def _copy(source: Path, folder: Path) -> list[str]:
    """Copy XML files and photographs; returns the sorted names of the XML files."""
    files = list(source.iterdir())
    annotations = [x for x in files if x.suffix == ".xml"]
    _copy_into(folder / "Annotations", annotations)
    _copy_into(folder / "JPEGImages", (x for x in files if x.suffix.lower() == ".jpg"))
    return sorted(x.stem for x in annotations)


def _copy_into(folder: Path, files: Iterable[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder)
