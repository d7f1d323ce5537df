# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL and FCOS as mmdetection builds and names them, written for tests from their structure.

Shape shorthand in this file:
    N: images; C: channels of a level; H, W: size of a level; K: classes
"""

import torch
from torch import nn
from torch.nn import functional as F

STRIDES = (8, 16, 32, 64, 128)


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, caffe):
        super().__init__()
        first, second = (stride, 1) if caffe else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    def __init__(self, base, caffe):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        inputs = base
        for i, blocks in enumerate((3, 4, 6, 3)):
            width, layers = base * 2**i, []
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                layers.append(Bottleneck(inputs, width, stride, caffe))
                inputs = 4 * width
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps[1:]


class Conv(nn.Module):
    """Convolution, then GroupNorm and ReLU if ``groups``; with a norm there is no bias."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not groups)
        if groups:
            self.gn = nn.GroupNorm(groups, outputs)
        self.groups = groups

    def forward(self, x):
        x = self.conv(x)
        return F.relu(self.gn(x)) if self.groups else x


class FPN(nn.Module):
    """P3 to P7; the further two are made from P5."""

    def __init__(self, inputs, channels, relu_before_p7):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Conv(c, channels, 1) for c in inputs)
        strides = (1, 1, 1, 2, 2)
        self.fpn_convs = nn.ModuleList(Conv(channels, channels, 3, s) for s in strides)
        self.relu_before_p7 = relu_before_p7

    def forward(self, maps):
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps)]
        for i in (1, 0):
            size = laterals[i].shape[2:]
            laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=size, mode="nearest")
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        outs.append(self.fpn_convs[3](outs[-1]))
        last = F.relu(outs[-1]) if self.relu_before_p7 else outs[-1]
        return [*outs, self.fpn_convs[4](last)]


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class Head(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.cls_convs = nn.ModuleList(Conv(channels, channels, 3, 1, groups) for _ in range(4))
        self.reg_convs = nn.ModuleList(Conv(channels, channels, 3, 1, groups) for _ in range(4))
        self.scales = nn.ModuleList(Scale() for _ in STRIDES)

    def branches(self, x):
        in_cls = in_reg = x
        for conv in self.cls_convs:
            in_cls = conv(in_cls)
        for conv in self.reg_convs:
            in_reg = conv(in_reg)
        return in_cls, in_reg


class Integral(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("project", torch.linspace(0, 16, 17))


class GFLHead(Head):
    """Per level: class logits (N, K, H, W), and four distances (N, 4, H, W) in pixels."""

    def __init__(self, channels, groups, classes):
        super().__init__(channels, groups)
        self.gfl_cls = nn.Conv2d(channels, classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(channels, 4 * 17, 3, padding=1)
        self.integral = Integral()

    def forward(self, maps):
        logits, distances = [], []
        for x, scale, stride in zip(maps, self.scales, STRIDES):
            in_cls, in_reg = self.branches(x)
            logits.append(self.gfl_cls(in_cls))
            bins = (scale.scale * self.gfl_reg(in_reg)).unflatten(1, (4, 17)).softmax(2)
            distances.append((bins * self.integral.project[:, None, None]).sum(2) * stride)
        return logits, distances, None


class FCOSHead(Head):
    """As GFLHead, and centerness logits (N, 1, H, W)."""

    def __init__(self, channels, groups, classes, improved):
        super().__init__(channels, groups)
        self.conv_cls = nn.Conv2d(channels, classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.improved = improved

    def forward(self, maps):
        logits, distances, centerness = [], [], []
        for x, scale, stride in zip(maps, self.scales, STRIDES):
            in_cls, in_reg = self.branches(x)
            logits.append(self.conv_cls(in_cls))
            scaled = scale.scale * self.conv_reg(in_reg)
            distances.append(scaled.clamp(min=0) * stride if self.improved else scaled.exp())
            centerness.append(self.conv_centerness(in_reg if self.improved else in_cls))
        return logits, distances, centerness


class MMDetector(nn.Module):
    """``backbone``, ``neck``, ``bbox_head``, with random weights and statistics.

    Args:
        kind: "gfl", "fcos" (released) or "fcos_improved".
    """

    def __init__(self, kind, base=8, channels=64, groups=32, classes=5):
        super().__init__()
        self.backbone = ResNet50(base, caffe=kind == "fcos")
        inputs = [4 * base * 2**i for i in (1, 2, 3)]
        self.neck = FPN(inputs, channels, relu_before_p7=kind != "gfl")
        if kind == "gfl":
            self.bbox_head = GFLHead(channels, groups, classes)
        else:
            self.bbox_head = FCOSHead(channels, groups, classes, kind == "fcos_improved")
        self._randomise()

    def _randomise(self):
        """Move every parameter and every statistic away from its initial value."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, x in self.state_dict().items():
                if "num_batches" in name or "project" in name:
                    continue
                noise = torch.rand(x.shape, generator=generator)
                if x.ndim == 4:
                    x.copy_((noise - 0.5) * (12 / x[0].numel()) ** 0.5)
                else:  # scales, norms and statistics are positive, as variances must be
                    x.copy_(0.5 + noise)

    def forward(self, images):
        """The neck's maps, and the head's per-level outputs."""
        maps = self.neck(self.backbone(images))
        return maps, self.bbox_head(maps)


def decode(distances, stride, offset):
    """Boxes (H * W, 4), xyxy in pixels, of one image and level.

    Args:
        distances: (4, H, W) in pixels: left, top, right, bottom.
        offset: of a cell's point from its corner, in strides: 0 for GFL, 0.5 for FCOS.
    """
    left, top, right, bottom = distances
    ys = (torch.arange(distances.shape[1]) + offset)[:, None] * stride
    xs = (torch.arange(distances.shape[2]) + offset) * stride
    return torch.stack([xs - left, ys - top, xs + right, ys + bottom], dim=-1).flatten(0, 1)
