#!/usr/bin/env python
# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Print how far a teacher in half precision is from one in float32: outputs, losses, gradients.

    python -m experiments.precision --config-file \\
        configs/shapes/TAR/retinanet_R_50_eighth_from_R_50_three_eighths_800.yaml
"""

import argparse

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor

from d2kd import DistillTrainer
from d2kd.config.load import load_config
from d2kd.data import register_custom_datasets
from d2kd.modeling import Distiller

__all__ = ["measure", "relative_errors"]

PRECISIONS = ("bfloat16", "float16")


def measure(cfg: CfgNode, batch: list[dict], precision: str) -> dict[str, Tensor]:
    """Run one step with the teacher in ``precision``; the student does not depend on it.

    Args:
        cfg: of a distillation.
        batch: what the data loader gives.
        precision: a value of DISTILL.TEACHER.PRECISION.

    Returns:
        What the teacher computed, each loss, and the gradient of the losses' sum, all flat.
    """
    cfg = cfg.clone()
    cfg.DISTILL.TEACHER.PRECISION = precision
    torch.manual_seed(1)
    model = Distiller(cfg).train()
    # Both steps sample the same proposals.
    torch.manual_seed(0)
    with EventStorage():
        _, step = model.forward_pair(model.student, model.teacher, batch, model.required)
    losses = {name: loss(step).total for name, loss in model.distill_losses.items()}
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    teacher = step.teacher
    regions = {"logits": teacher.logits, "deltas": teacher.deltas, "box bins": teacher.box_bins}
    return {
        **{"features": _flat(teacher.features), "dense logits": _flat(teacher.dense_logits)},
        **{name: x.flatten() for name, x in regions.items() if x is not None},
        **{f"loss {name}": loss.detach().flatten() for name, loss in losses.items()},
        "gradient": torch.cat([x.flatten() for x in gradients]),
    }


def _flat(maps: dict[str, Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in maps.values()]) if maps else torch.empty(0)


def relative_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm, of everything that is neither empty nor 0."""
    return {
        name: ((found[name] - x).norm() / x.norm()).item()
        for name, x in expected.items()
        if x.any()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="a config of a distillation")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    args = parser.parse_args(arguments)
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    register_custom_datasets(cfg)
    torch.manual_seed(1)
    batch = next(iter(DistillTrainer.build_train_loader(cfg)))
    expected = measure(cfg, batch, "float32")
    for precision in PRECISIONS:
        errors = relative_errors(measure(cfg, batch, precision), expected)
        for name, error in errors.items():
            print(f"{precision:<9}{name:<13}{error:.1e}")


if __name__ == "__main__":
    main()
