#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Convert another release's checkpoint of a network to timm's names, for MODEL.TIMM.WEIGHTS.

    python tools/convert_timm_weights.py efficientnet-lite0.pth tf_efficientnet_lite0 lite0.pth \
        --check cat.png=281,282,285 coffee.png=504,967,968

The two releases must build the network in the same order: tensors are matched one by one, and their
shapes must agree. That alone does not prove it, so also let the converted network classify a few
pictures whose ImageNet class you know (--check).
"""

import argparse
import sys
from pathlib import Path

import torch
from detectron2.data.detection_utils import read_image

from d2kd.checkpoint.weights import safe_load
from d2kd.utils.errors import WeightsError


def convert(source: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The source's tensors, in order, under the network's names.

    Raises:
        WeightsError: another number of tensors, or one of another shape.
    """
    # Some releases keep no counters of batches, which no inference reads.
    theirs = {k: x for k, x in source.items() if not k.endswith("num_batches_tracked")}
    ours = {k: x for k, x in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    if len(theirs) != len(ours):
        raise WeightsError(f"the file has {len(theirs)} tensors and the network {len(ours)}")
    for (name, x), (other, y) in zip(theirs.items(), ours.items()):
        if x.shape != y.shape:
            raise WeightsError(f"{name} is {tuple(x.shape)}, but {other} is {tuple(y.shape)}")
    return dict(zip(ours, theirs.values()))


@torch.no_grad()
def classify(network: torch.nn.Module, path: str) -> int:
    """The ImageNet class of a picture, prepared by timm's own data config."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    prepare = create_transform(**resolve_data_config({}, model=network), is_training=False)
    picture = prepare(Image.fromarray(read_image(path, format="RGB")))
    return int(network.eval()(picture[None]).argmax())


def main() -> int:
    import timm

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="checkpoint: a state_dict with the classifier")
    parser.add_argument("name", help="of the network in timm")
    parser.add_argument("output", type=Path)
    parser.add_argument("--check", nargs="*", default=[], metavar="PICTURE=CLASS[,CLASS...]")
    args = parser.parse_args()
    network = timm.create_model(args.name)
    network.load_state_dict(convert(safe_load(args.source), network), strict=False)
    for check in args.check:
        path, classes = check.rsplit("=", 1)
        found = classify(network, path)
        print(f"{path}: class {found}, expected one of {classes}")
        if str(found) not in classes.split(","):
            print("the converted network is wrong: nothing is written", file=sys.stderr)
            return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), args.output)
    print(f"{args.output}: {len(network.state_dict())} tensors of {args.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
