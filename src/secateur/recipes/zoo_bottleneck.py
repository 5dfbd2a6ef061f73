"""The "ResNet-56" of the TRP paper: bottlenecks, and no ReLU between two of their layers.

Tensor names are those of the released code (yuhuixu1993/Trained-Rank-Pruning, after bearpaw/pytorch-classification).
Shape legend: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1 to C, 3 x 3, 1 x 1 to 4 C, and a shortcut. With `released` no ReLU follows the 3 x 3, as in the released code."""

    def __init__(self, inputs: int, width: int, stride: int, released: bool) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.released = released
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 C', H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = self.bn3(self.conv3(y if self.released else F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class BottleneckResNet(nn.Module):
    """Three stages of bottlenecks for images of 32 x 32."""

    def __init__(self, blocks: int, released: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64), 1):
            layers: list[nn.Module] = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, width, 2 if stage > 1 and block == 0 else 1, released))
                inputs = EXPANSION * width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) to logits (B, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def cifar_resnet56_bottleneck(released: bool = True) -> nn.Module:
    """What Xu et al., 2020, call ResNet-56: 27 bottlenecks of (56 - 2) / 6 per stage, 83 layers deep; 127 M MACs.

    `released` False puts the ReLU back that the released code has commented out.

    >>> sum(p.numel() for p in cifar_resnet56_bottleneck().parameters()) // 1000
    869
    """
    return BottleneckResNet(9, released)
