"""The three small networks of the demo, in the shapes that the real ones have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)
ANCHORS = 2
# Width of the widest face, in pixels, that each stride is responsible for during training.
REACH = (40, 88, 100000)


def conv(cin: int, cout: int, stride: int = 1, groups: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


def separable(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(cin, cin, stride, groups=cin), conv(cin, cout, size=1))


class Detector(nn.Module):
    """SCRFD's interface: nine outputs (scores, boxes and key points of three strides), two anchors a
    cell, no batch dimension, distances in units of the stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 2), separable(16, 24, 2), separable(24, 32))
        self.stages = nn.ModuleList([
            nn.Sequential(separable(32, 48, 2), separable(48, 48), separable(48, 48)),
            nn.Sequential(separable(48, 64, 2), separable(64, 64), separable(64, 64)),
            nn.Sequential(separable(64, 80, 2), separable(80, 80)),
        ])  # fmt: skip
        self.lateral = nn.ModuleList([nn.Conv2d(c, 48, 1) for c in (48, 64, 80)])
        self.tower = nn.ModuleList([nn.Sequential(separable(48, 48), separable(48, 48)) for _ in STRIDES])
        self.head = nn.ModuleList([nn.Conv2d(48, ANCHORS * 15, 1) for _ in STRIDES])
        for head in self.head:
            nn.init.constant_(head.bias[: ANCHORS], -4.0)

    def raw(self, x: Tensor) -> list[Tensor]:
        """Per stride `[B, H·W·2, 15]`: score logit, four distances, five points."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = None
        outs: list[Tensor] = [None] * 3  # type: ignore[list-item]
        for k in (2, 1, 0):
            y = self.lateral[k](maps[k])
            if top is not None:
                y = y + nn.functional.interpolate(top, size=y.shape[2:], mode="nearest")
            top = y
            z = self.head[k](self.tower[k](y))
            score, rest = z[:, :ANCHORS], z[:, ANCHORS:]
            score = score.permute(0, 2, 3, 1).reshape(z.shape[0], -1, 1)
            rest = rest.permute(0, 2, 3, 1).reshape(z.shape[0], -1, 14)
            outs[k] = torch.cat([score, rest], -1)
        return outs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = [out[0] for out in self.raw(x)]
        return (*(o[:, :1].sigmoid() for o in outs), *(o[:, 1:5] for o in outs), *(o[:, 5:] for o in outs))


class Block(nn.Module):
    """IBasicBlock of arcface_torch, with its key names."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin, eps=1e-5)
        self.conv1 = nn.Conv2d(cin, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout, eps=1e-5)
        self.prelu = nn.PReLU(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout, eps=1e-5)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class Recogniser(nn.Module):
    """The IResNet family at a small width; input `[B,3,112,112]` in [-1, 1]."""

    def __init__(self, widths: tuple[int, ...] = (8, 20, 40, 64), blocks: tuple[int, ...] = (1, 1, 1, 1), dim: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=1e-5)
        self.prelu = nn.PReLU(widths[0])
        cin = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks), 1):
            layer = [Block(cin if k == 0 else width, width, 2 if k == 0 else 1) for k in range(count)]
            setattr(self, f"layer{stage}", nn.Sequential(*layer))
            cin = width
        self.bn2 = nn.BatchNorm2d(cin, eps=1e-5)
        self.fc = nn.Linear(cin * 49, dim)
        self.features = nn.BatchNorm1d(dim, eps=1e-5)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))


class Judge(nn.Module):
    """A recogniser of another kind: plain convolutions and a global pool; input as above."""

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 48), conv(48, 64, 2), conv(64, 80), conv(80, 96, 2), conv(96, 96, 2))
        self.fc = nn.Linear(96 * 16, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.body(x), 1))
