#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Convert mmdetection's checkpoint of GFL or FCOS (ResNet, FPN) into one of Detectron2's names.

    python tools/convert_mmdet_checkpoint.py gfl_r101_fpn_mstrain_2x_coco.pth \
        output/coco/teacher/gfl_R_101_mmdet_FPN_2x/model_final.pth \
        --config-file configs/coco/teacher/gfl_R_101_mmdet_FPN_2x.yaml

The config says which detector the weights are for: every one of its tensors must be in the file,
in the same shape. Pixel statistics, the place of a block's stride (MODEL.RESNETS.STRIDE_IN_1X1) and
FCOS's kind of head (MODEL.FCOS.BOX_PREDICTION, CENTERNESS_BRANCH) are not in the file: take a
config that says them. MODEL_ZOO.md lists which.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import Tensor

import d2kd
from d2kd.checkpoint.weights import safe_load
from d2kd.utils.errors import WeightsError
from d2kd.utils.text import first_few

BOTTOM_UP = "backbone.bottom_up"
# Patterns of names, after layer1 is res2 and the first level of the neck is p3; Detectron2's names.
RENAMES = [
    (r"backbone\.conv1\.(.+)", BOTTOM_UP + r".stem.conv1.\1"),
    (r"backbone\.bn1\.(.+)", BOTTOM_UP + r".stem.conv1.norm.\1"),
    (r"backbone\.(res\d\.\d+)\.conv(\d)\.(.+)", BOTTOM_UP + r".\1.conv\2.\3"),
    (r"backbone\.(res\d\.\d+)\.bn(\d)\.(.+)", BOTTOM_UP + r".\1.conv\2.norm.\3"),
    (r"backbone\.(res\d\.\d+)\.downsample\.0\.(.+)", BOTTOM_UP + r".\1.shortcut.\2"),
    (r"backbone\.(res\d\.\d+)\.downsample\.1\.(.+)", BOTTOM_UP + r".\1.shortcut.norm.\2"),
    (r"neck\.lateral_convs\.p(\d)\.conv\.(.+)", r"backbone.fpn_lateral\1.\2"),
    (r"neck\.fpn_convs\.p([345])\.conv\.(.+)", r"backbone.fpn_output\1.\2"),
    (r"neck\.fpn_convs\.p([67])\.conv\.(.+)", r"backbone.top_block.p\1.\2"),
    (r"bbox_head\.(?:gfl|conv)_cls\.(.+)", r"head.cls_score.\1"),
    (r"bbox_head\.(?:gfl|conv)_reg\.(.+)", r"head.bbox_pred.\1"),
    (r"bbox_head\.conv_centerness\.(.+)", r"head.ctrness.\1"),
]
# Counters that no inference reads, and the constants 0, 1, ..., 16 of GFL's integral.
UNUSED = re.compile(r".*\.num_batches_tracked|bbox_head\.integral\.project")
SUBNETS = {"cls": "cls_subnet", "reg": "bbox_subnet"}


def convert(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under Detectron2's names.

    Args:
        source: mmdetection's state_dict.

    Raises:
        WeightsError: it has tensors of other parts than ResNet, FPN, GFL's and FCOS's heads.
    """
    source = {name: x for name, x in source.items() if not UNUSED.fullmatch(name)}
    scales = [source.pop(name) for name in _scale_names(source)]
    names = {name: _rename(name) for name in source}
    unknown = [name for name, new in names.items() if new is None]
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors belong to no part that can be converted: {first_few(unknown)}"
        )
    found = {new: source[name] for name, new in names.items()}
    # A convolution before a GroupNorm has no bias in mmdetection and one in Detectron2.
    for name, x in list(found.items()):
        bias = name.removesuffix("weight") + "bias"
        if "_subnet." in name and x.ndim == 4 and bias not in found:
            found[bias] = x.new_zeros(len(x))
    if scales:
        found["head.scales"] = torch.stack([x.reshape(()) for x in scales])
    return found


def _scale_names(source: dict[str, Tensor]) -> list[str]:
    """The names of the levels' scales, finest level first."""
    names = [name for name in source if re.fullmatch(r"bbox_head\.scales\.\d+\.scale", name)]
    return sorted(names, key=lambda name: int(name.split(".")[2]))


def _rename(name: str) -> str | None:
    """Detectron2's name; None if the part is unknown."""
    head = re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|gn)\.(.+)", name)
    if head:
        branch, block, layer, rest = head.groups()
        # A block is convolution, norm, ReLU.
        return f"head.{SUBNETS[branch]}.{3 * int(block) + (layer == 'gn')}.{rest}"
    # layer1 is res2; the first of the neck's levels is p3.
    name = re.sub(r"^backbone\.layer(\d)", lambda m: f"backbone.res{int(m[1]) + 1}", name)
    name = re.sub(r"^(neck\.\w+)\.(\d)", lambda m: f"{m[1]}.p{int(m[2]) + 3}", name)
    for pattern, new in RENAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, new, name)
    return None


def check(found: dict[str, Tensor], config_file: str) -> None:
    """Compare names and shapes with the detector of a config.

    Raises:
        WeightsError: a tensor is missing, of another shape, or not the detector's.
    """
    cfg = get_cfg()
    d2kd.add_d2kd_config(cfg)
    cfg.merge_from_file(config_file)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        wanted = build_model(cfg).state_dict()
    wrong = [f"missing {name}" for name in wanted if name not in found]
    wrong += [f"unexpected {name}" for name in found if name not in wanted]
    wrong += [
        f"{name}: file {tuple(found[name].shape)}, detector {tuple(x.shape)}"
        for name, x in wanted.items()
        if name in found and found[name].shape != x.shape
    ]
    if wrong:
        raise WeightsError(
            f"the checkpoint is not of {config_file}, {len(wrong)} tensors differ: "
            f"{first_few(wrong)}. Set --config-file to a config of its detector"
        )


def read(path: str) -> dict[str, Tensor]:
    """The state_dict of a file {"meta": ..., "state_dict": ...}, or one that is a state_dict.

    Raises:
        WeightsError: the file holds more than weights and text.
    """
    try:
        content = safe_load(path)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights alone: {error}. A checkpoint of a training holds "
            "more; mmdetection's tools/model_converters/publish_model.py leaves the weights"
        ) from error
    return content.get("state_dict", content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="mmdetection's checkpoint")
    parser.add_argument("output", type=Path, help="what DISTILL.TEACHER.WEIGHTS is to name")
    parser.add_argument("--config-file", required=True, help="d2kd's config of the detector")
    args = parser.parse_args()
    try:
        found = convert(read(args.source))
        check(found, args.config_file)
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": found}, args.output)
    print(f"{args.output}: {len(found)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
