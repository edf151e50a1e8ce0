"""The three networks of the demo, in the formats facegrad reads: see README.md in this folder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

WIDTHS, BLOCKS, EMBEDDING = (8, 24, 48, 64), (1, 2, 2, 1), 128
STRIDES, ANCHORS = (8, 16, 32), 2


class IBasicBlock(nn.Module):
    """The residual block of arcface_torch's IResNet: BN before, PReLU inside, nothing after the sum."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """arcface_torch's IResNet with its key names and narrow stages: [N, 3, 112, 112] in [-1, 1] → [N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        cin = WIDTHS[0]
        for k, (width, count) in enumerate(zip(WIDTHS, BLOCKS), 1):
            stage = [IBasicBlock(cin if b == 0 else width, width, 2 if b == 0 else 1) for b in range(count)]
            setattr(self, f"layer{k}", nn.Sequential(*stage))
            cin = width
        self.bn2 = nn.BatchNorm2d(cin)
        self.fc = nn.Linear(cin * 49, EMBEDDING)
        self.features = nn.BatchNorm1d(EMBEDDING)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


def _conv(cin: int, cout: int, stride: int = 1, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(cout), nn.ReLU())


class Judge(nn.Module):
    """A plain convolutional recogniser that shares nothing with IResNet: [N, 3, 112, 112] → [N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 16, 2, 5), _conv(16, 32, 2), _conv(32, 48), _conv(48, 64, 2),
                                  _conv(64, 64), _conv(64, 96, 2))
        self.pool = nn.Conv2d(96, 96, 7, groups=96, bias=False)
        self.head = nn.Sequential(nn.BatchNorm2d(96), nn.Conv2d(96, EMBEDDING, 1, bias=False),
                                  nn.BatchNorm2d(EMBEDDING))

    def forward(self, x):
        return self.head(self.pool(self.body(x))).flatten(1)


class Detector(nn.Module):
    """A face detector with the nine outputs of SCRFD: scores, box distances and key-point offsets of the
    strides 8, 16 and 32, two anchors a cell, distances in strides, no batch dimension (batch size 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 12, 2), _conv(12, 16, 2), _conv(16, 24))
        self.down = nn.ModuleList([nn.Sequential(_conv(24, 32, 2), _conv(32, 32)),
                                   nn.Sequential(_conv(32, 40, 2), _conv(40, 40)),
                                   nn.Sequential(_conv(40, 48, 2), _conv(48, 48))])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 32, 1) for c in (32, 40, 48)])
        self.tower = nn.ModuleList([_conv(32, 32) for _ in STRIDES])
        self.score = nn.ModuleList([nn.Conv2d(32, ANCHORS, 3, 1, 1) for _ in STRIDES])
        self.box = nn.ModuleList([nn.Conv2d(32, ANCHORS * 4, 3, 1, 1) for _ in STRIDES])
        self.points = nn.ModuleList([nn.Conv2d(32, ANCHORS * 10, 3, 1, 1) for _ in STRIDES])
        for s in self.score:
            nn.init.constant_(s.bias, -3.5)

    def levels(self, x):
        """The raw maps (scores as logits), one triple a stride, [N, 2·k, H, W]."""
        x, maps = self.stem(x), []
        for step in self.down:
            x = step(x)
            maps.append(x)
        top, out = None, [None] * 3
        for k in (2, 1, 0):
            here = self.lateral[k](maps[k])
            top = here if top is None else here + F.interpolate(top, size=here.shape[2:], mode="nearest")
            y = self.tower[k](top)
            out[k] = (self.score[k](y), self.box[k](y), self.points[k](y))
        return out

    def forward(self, x):
        levels = self.levels(x)
        flat = lambda y, n: y.permute(0, 2, 3, 1).reshape(-1, n)
        return (*[flat(s, 1).sigmoid() for s, _, _ in levels], *[flat(b, 4) for _, b, _ in levels],
                *[flat(p, 10) for _, _, p in levels])
