# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The named compatibility edits that make Detectron2 0.6 run on current Python, torch and numpy."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class EditError(RuntimeError):
    """An edit's text is not in the sources, so they are not the sources it was written for."""


@dataclass(frozen=True)
class Edit:
    """One replacement of text in one file, made at every place where the text stands.

    Args:
        file: path below the root of the source distribution.
        old: text that must be there.
        new: text that takes its place.
        reason: why, and which change of upstream or of a dependency it follows.
    """

    file: str
    old: str
    new: str
    reason: str

    def apply(self, root: Path) -> None:
        """Rewrite the file below ``root``; raises EditError where file or text is missing."""
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if self.old not in text:
            what = "its text was not found" if path.is_file() else "there is no such file"
            raise EditError(
                f"compatibility edit of {self.file} cannot be made: {what}\n"
                f"  text:   {self.old!r}\n  reason: {self.reason}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def apply_edits(root: Path, edits: Iterable[Edit]) -> None:
    """Apply all edits below ``root`` in order; raises EditError at the first that does not fit."""
    for edit in edits:
        edit.apply(root)


NUMPY = "numpy 1.24 removed these aliases (2.0 has np.bool again); upstream main uses the builtins"
PILLOW = "Pillow 10 removed Image.LINEAR; upstream main uses Image.BILINEAR, the same filter"
RESOURCES = "setuptools 82 removed pkg_resources; importlib.resources is its successor"
NO_C = "no compiled extension in this build; upstream main guards or defers its import too"
FAST_EVAL = "no compiled extension in this build; upstream main falls back to COCOeval as well"
SAMPLE = "Python 3.11 samples from sequences only; upstream main samples from a list"
CAFFE2 = "PyTorch no longer ships Caffe2; upstream main imports its export only where it is there"
GROUP_NORM = (
    "torch refuses GroupNorm(32, 1), made only for its name; upstream main asks for 32 channels"
)
MESHGRID = "torch asks for the indexing argument and warns without it; 'ij' is what it defaults to"

GUARDED_C = """try:
    from detectron2 import _C
except ImportError:
    from detectron2.no_extension import _C"""

GUARDED_FAST_EVAL = """
try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:
    COCOeval_opt = COCOeval"""

GUARDED_CAFFE2 = """try:
    from .api import *
except ImportError:
    pass"""

# torch.ops has its own error for an unknown operator, which does not say what is missing.
GUARDED_NMS = """    if not hasattr(torch.ops.detectron2, "nms_rotated"):
        from detectron2.no_extension import _C

        return _C.nms_rotated(boxes, scores, iou_threshold)
    return torch.ops.detectron2.nms_rotated"""

RESOURCE_CALL = """pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )"""
RESOURCE_CALL_NEW = """str(
        importlib.resources.files("detectron2.model_zoo").joinpath("configs", config_path)
    )"""

IMPORT_C = "from detectron2 import _C"
IMPORT_FAST_EVAL = "\nfrom detectron2.evaluation.fast_eval_api import COCOeval_opt"
ZOO = "detectron2/model_zoo/model_zoo.py"
CPU_ONLY = "is not supported on CPUs!"
CPU_ONLY_NEW = CPU_ONLY + " This build has no compiled extension for GPUs either."

EDITS = (
    Edit("detectron2/data/build.py", "dtype=np.int", "dtype=int", NUMPY),
    Edit("detectron2/data/datasets/pascal_voc.py", "dtype=np.str", "dtype=str", NUMPY),
    Edit("detectron2/evaluation/pascal_voc_evaluation.py", "np.bool", "bool", NUMPY),
    Edit("detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", NUMPY),
    Edit("detectron2/evaluation/sem_seg_evaluation.py", "np.float)", "float)", NUMPY),
    Edit("detectron2/structures/masks.py", "np.bool", "bool", NUMPY),
    Edit("detectron2/utils/video_visualizer.py", "np.bool", "bool", NUMPY),
    Edit("detectron2/utils/visualizer.py", "np.bool", "bool", NUMPY),
    Edit("detectron2/data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR", PILLOW),
    Edit(ZOO, "import pkg_resources\n", "import importlib.resources\n", RESOURCES),
    Edit(ZOO, RESOURCE_CALL, RESOURCE_CALL_NEW, RESOURCES),
    Edit("detectron2/layers/deform_conv.py", IMPORT_C, GUARDED_C, NO_C),
    Edit("detectron2/layers/deform_conv.py", CPU_ONLY, CPU_ONLY_NEW, NO_C),
    Edit("detectron2/layers/roi_align_rotated.py", IMPORT_C, GUARDED_C, NO_C),
    Edit("detectron2/layers/rotated_boxes.py", IMPORT_C, GUARDED_C, NO_C),
    Edit(
        "detectron2/layers/nms.py",
        "    return torch.ops.detectron2.nms_rotated",
        GUARDED_NMS,
        NO_C,
    ),
    Edit(
        "detectron2/evaluation/coco_evaluation.py",
        IMPORT_FAST_EVAL,
        GUARDED_FAST_EVAL,
        FAST_EVAL,
    ),
    Edit(
        "detectron2/data/common.py",
        "sample(self._fallback_candidates, k=1)",
        "sample(sorted(self._fallback_candidates), k=1)",
        SAMPLE,
    ),
    Edit("detectron2/export/__init__.py", "from .api import *", GUARDED_CAFFE2, CAFFE2),
    Edit(
        "detectron2/modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        MESHGRID,
    ),
    Edit(
        "detectron2/modeling/meta_arch/retinanet.py",
        "get_norm(norm, 1)",
        "get_norm(norm, 32)",
        GROUP_NORM,
    ),
)
