"""Small reference networks for images of 8 x 8 to 32 x 32, by name.

Tensor names are those of the published CIFAR-10 checkpoints (akamaster/pytorch_resnet_cifar10 for option A, Distiller for
option B, HRank's VGG), so these load without renaming.
Shape legend: B batch, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.errors import SecateurError, nearest
from secateur.recipes.zoo_bottleneck import cifar_resnet56_bottleneck


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the block widens, the shortcut halves the image.

    Option A pads the new channels with zeros on both sides (`pad`, channels per side), option B convolves 1x1.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, 0
        self.downsample: nn.Sequential | None = None
        if inputs != outputs and option == "a":
            self.pad = (outputs - inputs) // 2
        elif inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class SmallResNet(nn.Module):
    """A residual network of three stages. He et al., 2016, section 4.2; the head is `linear` (option A) or `fc` (option B)."""

    def __init__(self, blocks: int, option: str, *, widths: tuple[int, int, int] = (16, 32, 64), colours: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(colours, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, option)
        self.layer2 = _stage(widths[0], widths[1], blocks, option)
        self.layer3 = _stage(widths[1], widths[2], blocks, option)
        self.head = "linear" if option == "a" else "fc"
        self.add_module(self.head, nn.Linear(widths[2], 10))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, colours, H, W) to logits (B, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.get_submodule(self.head)(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, option: str) -> nn.Sequential:
    first = Block(inputs, outputs, 1 if inputs == outputs else 2, option)
    return nn.Sequential(first, *[Block(outputs, outputs, 1, option) for _ in range(blocks - 1)])


def cifar_resnet(depth: int = 56, option: str = "a", widths: tuple[int, int, int] = (16, 32, 64)) -> nn.Module:
    """ResNet-`depth` for CIFAR-10, depth = 6 n + 2, shortcut option "a" or "b"; sparse training doubles `widths`.

    ResNet-56 with option A: 853,018 parameters, 125.49 M MACs.

    >>> sum(p.numel() for p in cifar_resnet(56, "a").parameters())
    853018
    """
    if depth < 8 or (depth - 2) % 6:
        raise SecateurError(f"a CIFAR ResNet of depth {depth}", "no such network", "use 6 n + 2 layers: 20, 32, 44, 56, 110")
    if option not in ("a", "b"):
        raise SecateurError(f"shortcut option {option!r}", "no such option", 'use "a" (zero padding) or "b" (1x1 convolution)')
    return SmallResNet((depth - 2) // 6, option, widths=widths)


def digits_resnet(blocks: int = 1, widths: tuple[int, int, int] = (16, 32, 64)) -> nn.Module:
    """A residual network for the 8 x 8 grey digits, option B, so that every channel can be cut."""
    return SmallResNet(blocks, "b", widths=widths, colours=1)


class VGG(nn.Module):
    """VGG with batch norm for CIFAR-10, as the pruning literature counts it, by the number of convolutions per stage.

    Simonyan and Zisserman, 2015. The head has one hidden layer of 512 (Li et al., 2017, "Pruning filters for efficient
    convnets", section 4.1), or none (the VGG-19 of sparse training: Wang et al., 2020, GraSP).
    """

    def __init__(self, stages: tuple[int, ...] = (2, 2, 3, 3, 3), hidden: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width, depth in zip((64, 128, 256, 512, 512), stages, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        head = [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True)] if hidden else []
        self.classifier = nn.Sequential(*head, nn.Linear(512, 10))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) to logits (B, 10)."""
        return self.classifier(self.features(x).flatten(1))


def vgg16_bn_cifar() -> nn.Module:
    """VGG-16-BN for CIFAR-10: 14,991,946 parameters, 313.46 M MACs.

    >>> sum(p.numel() for p in vgg16_bn_cifar().parameters())
    14991946
    """
    return VGG()


def vgg19_bn_cifar() -> nn.Module:
    """VGG-19-BN for CIFAR-10, the network of GraSP's, ProbMask's and RPG's tables.

    >>> sum(p.numel() for p in vgg19_bn_cifar().parameters())
    20040522
    """
    return VGG((2, 2, 4, 4, 4), hidden=False)


def _initialise(module: nn.Module) -> None:
    """He et al., 2015, eq. 14, for convolutions; torch's default elsewhere."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": digits_resnet,
    "cifar_resnet56_bottleneck": cifar_resnet56_bottleneck,
    "vgg16_bn_cifar": vgg16_bn_cifar,
    "vgg19_bn_cifar": vgg19_bn_cifar,
    "cifar_resnet32_wide": partial(cifar_resnet, 32, "a", (32, 64, 128)),  # GraSP's and RPG's tables double its widths
    **{f"cifar_resnet{d}_{o}": partial(cifar_resnet, d, o) for d in (20, 32, 44, 56, 110) for o in ("a", "b")},
}


def build(name: str, **arguments: object) -> nn.Module:
    """The network of that name with fresh weights. Raises `SecateurError` for an unknown name."""
    if name not in BUILDERS:
        raise SecateurError(f"the network {name!r}", "no such name", nearest(name, list(BUILDERS)))
    return BUILDERS[name](**arguments)
