# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""timm's networks under an FPN: mobile students, and stronger teachers.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ...checkpoint.weights import resolve_weights, safe_load
from ...utils.errors import ConfigError, WeightsError
from ...utils.text import did_you_mean, first_few
from .top_block import LinearP6P7

__all__ = [
    "TimmBackbone",
    "build_fcos_timm_fpn_backbone",
    "build_gfl_timm_fpn_backbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_fpn_backbone",
]

# Grey levels by which PIXEL_MEAN and PIXEL_STD may differ from what the weights were trained with.
_TOLERANCE = 2.0


class TimmBackbone(Backbone):
    """A network of timm that returns its stages' feature maps: "res2" at stride 4 and so on."""

    def __init__(self, network: nn.Module):
        """
        Args:
            network: of ``timm.create_model(..., features_only=True)``.
        """
        super().__init__()
        self.network = network
        info = network.feature_info
        shapes = zip(info.channels(), info.reduction())
        self._shapes = {
            f"res{stride.bit_length() - 1}": ShapeSpec(channels=channels, stride=stride)
            for channels, stride in shapes
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to level name -> (N, C, H / stride, W / stride)."""
        return dict(zip(self._shapes, self.network(x)))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Level name -> channels and stride."""
        return dict(self._shapes)

    def freeze(self, freeze_at: int) -> "TimmBackbone":
        """Freeze everything up to stride 2**freeze_at, statistics of BatchNorm included."""
        from timm.layers import freeze_batch_norm_2d

        frozen = [x["module"] for x in self._stages() if x["reduction"] <= 2**freeze_at]
        if freeze_at <= 0 or not frozen:
            return self
        last = frozen[-1].replace(".", "_")
        for name, module in list(self._flat_modules()):
            for parameter in module.parameters():
                parameter.requires_grad_(False)
            _replace(self.network, name, freeze_batch_norm_2d(module))
            if name.replace(".", "_") == last:
                break
        return self

    def _stages(self) -> list[dict[str, Any]]:
        return self.network.feature_info.info

    def _flat_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules in the order in which they run, the blocks of a stage list one by one."""
        for name, module in self.network.named_children():
            if isinstance(module, nn.Sequential) and any(
                x["module"].startswith(f"{name}.") for x in self._stages()
            ):
                yield from ((f"{name}.{i}", block) for i, block in module.named_children())
            else:
                yield name, module


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MODEL.TIMM's network under an FPN of p2 to p6, for two-stage detectors."""
    return _build_fpn(cfg, build_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same with P6 and P7 made from the network's last map, as RetinaNet has them."""
    network, last = build_timm_backbone(cfg, input_shape), cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = network.output_shape()[last].channels
    top = LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=last)
    return _build_fpn(cfg, network, top)


@BACKBONE_REGISTRY.register()
def build_fcos_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same with P6 and P7 made from the FPN's last map, as FCOS has them (arXiv 2006.09214)."""
    return _build_fpn_over_p5(cfg, input_shape, LastLevelP6P7)


@BACKBONE_REGISTRY.register()
def build_gfl_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """As FCOS has them, without the ReLU between P6 and P7."""
    return _build_fpn_over_p5(cfg, input_shape, LinearP6P7)


def _build_fpn_over_p5(cfg: CfgNode, input_shape: ShapeSpec, top: type[LastLevelP6P7]) -> FPN:
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    level = cfg.MODEL.FPN.IN_FEATURES[-1].replace("res", "p")
    block = top(channels, channels, in_feature=level)
    return _build_fpn(cfg, build_timm_backbone(cfg, input_shape), block)


def _build_fpn(cfg: CfgNode, network: Backbone, top_block: nn.Module) -> FPN:
    unknown = sorted(set(cfg.MODEL.FPN.IN_FEATURES) - set(network.output_shape()))
    if unknown:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES names {unknown}, but {cfg.MODEL.TIMM.NAME} with "
            f"MODEL.TIMM.OUT_INDICES {list(cfg.MODEL.TIMM.OUT_INDICES)} gives "
            f"{list(network.output_shape())}: set it to some of these"
        )
    return FPN(
        bottom_up=network,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The network of MODEL.TIMM with its starting weights.

    Raises:
        ConfigError: timm is not installed, knows no such network, or was trained on other pixels.
        WeightsError: MODEL.TIMM.WEIGHTS lacks tensors of the network.
    """
    node = cfg.MODEL.TIMM
    timm = _import_timm()
    if node.NAME not in timm.list_models():
        hint = did_you_mean(node.NAME, timm.list_models())
        raise ConfigError(f"MODEL.TIMM.NAME is {node.NAME!r}, which timm does not know.{hint}")
    if node.NORM not in ("", "FrozenBN"):
        raise ConfigError(f"MODEL.TIMM.NORM is {node.NORM!r}: set it to '' or 'FrozenBN'")
    indices = list(node.OUT_INDICES) or _indices_of_strides(timm, node.NAME)
    network = timm.create_model(
        node.NAME,
        pretrained=node.PRETRAINED,
        features_only=True,
        out_indices=indices,
        in_chans=input_shape.channels,
    )
    if node.WEIGHTS:
        _load(network, node.WEIGHTS)
    if node.WEIGHTS or node.PRETRAINED:
        _check_pixels(cfg, timm.data.resolve_data_config({}, model=network))
    if node.NORM == "FrozenBN":
        network = timm.layers.freeze_batch_norm_2d(network)
    return TimmBackbone(network).freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def _import_timm() -> Any:
    try:
        import timm
        import timm.data
        import timm.layers
    except ImportError as error:
        raise ConfigError(
            "MODEL.BACKBONE.NAME asks for a network of timm, which is not installed: run "
            "pip install 'd2kd[timm]'"
        ) from error
    return timm


def _indices_of_strides(timm: Any, name: str) -> list[int]:
    """timm's numbers of the maps of stride 4 to 32."""
    with torch.device("meta"):
        info = timm.create_model(name, features_only=True).feature_info
    return [i for i, stride in zip(info.out_indices, info.reduction()) if 4 <= stride <= 32]


def _load(network: nn.Module, weights: str) -> None:
    """Load every tensor of the network; what the file has beyond them is its classifier."""
    content = safe_load(resolve_weights(weights, "MODEL.TIMM.WEIGHTS"))
    ours = network.state_dict()
    # timm flattens some networks to give feature maps: "stages.0" is "stages_0" there.
    flat = {re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name): x for name, x in content.items()}
    saved = {name: x for name, x in {**flat, **content}.items() if name in ours}
    wrong = [n for n, x in ours.items() if n not in saved or saved[n].shape != x.shape]
    if wrong:
        raise WeightsError(
            f"MODEL.TIMM.WEIGHTS {weights} lacks {len(wrong)} of the network's {len(ours)} "
            f"tensors, or has them in another shape: {first_few(wrong)}. Set it to a checkpoint of "
            "MODEL.TIMM.NAME under timm's names"
        )
    network.load_state_dict(saved)


def _check_pixels(cfg: CfgNode, data: dict[str, Any]) -> None:
    """Pretrained weights want the pixels that they were trained on."""
    wanted = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [round(255 * x, 3) for x in data["mean"]],
        "MODEL.PIXEL_STD": [round(255 * x, 3) for x in data["std"]],
    }
    found = {
        "INPUT.FORMAT": cfg.INPUT.FORMAT,
        "MODEL.PIXEL_MEAN": list(cfg.MODEL.PIXEL_MEAN),
        "MODEL.PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
    }
    wrong = [
        f"  {key} is {found[key]}: set it to {value}"
        for key, value in wanted.items()
        if not _is_near(found[key], value)
    ]
    if wrong:
        head = f"the weights of MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME} were trained on other pixels:"
        raise ConfigError("\n".join([head, *wrong]))


def _is_near(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) or not isinstance(found, Sequence):
        return found == wanted
    return len(found) == len(wanted) and all(
        abs(a - b) <= _TOLERANCE for a, b in zip(found, wanted)
    )
