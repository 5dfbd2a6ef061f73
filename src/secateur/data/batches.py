"""Batches cut, shifted, mirrored and normalised where the images live, in whole batches at a time.

Shape legend: N images, B images of a batch, C colours, H x W pixels, P pixels of border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.core.errors import SecateurError
from secateur.data.dataset import Augment, DataSet


@dataclass(frozen=True, eq=False)
class Batches:
    """(images, labels) pairs, the same in every pass; `epoch(n)` gives the n-th shuffled pass.

    `x` (N, ...) uint8 or float, `y` (N, ...). Everything a pass does follows from (`seed`, its number): a resumed run sees
    the batches it would have seen. Images come out float32: uint8 divided by 255, then (x - mean) / std.
    """

    x: Tensor
    y: Tensor
    batch: int = 128
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Augment = field(default_factory=Augment)
    shuffle: bool = False
    drop_last: bool = False
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SecateurError("batches", f"a batch of {self.batch} images", "ask for at least 1")

    def __len__(self) -> int:
        whole = len(self.x) // self.batch
        return whole if self.drop_last else whole + bool(len(self.x) % self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    @property
    def images(self) -> int:
        """How many images one pass shows."""
        return len(self) * self.batch if self.drop_last else len(self.x)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The pass of that number: x (B, C, H, W) float32, y (B,)."""
        n, device, crop = len(self.x), self.x.device, self.augment.crop
        dice = torch.Generator().manual_seed(_mixed(self.seed, number))
        order = torch.randperm(n, generator=dice) if self.shuffle else torch.arange(n)
        shifts = torch.randint(0, 2 * crop + 1, (2, n), generator=dice) if crop else torch.zeros(2, n, dtype=torch.long)
        flips = torch.rand(n, generator=dice) < 0.5 if self.augment.flip else torch.zeros(n, dtype=torch.bool)
        order, shifts, flips = order.to(device), shifts.to(device), flips.to(device)
        scale, offset = self._affine()
        for first in range(0, len(self) * self.batch, self.batch):
            span = slice(first, min(first + self.batch, n))
            x = self.x[order[span]]
            if crop:
                x = shifted(x, shifts[0, span], shifts[1, span], crop)
            if self.augment.flip:
                x = torch.where(flips[span, None, None, None], x.flip(-1), x)
            yield self._normalised(x, scale, offset), self.y[order[span]]

    def plain(self) -> Batches:
        """The same images in order, neither shuffled nor augmented: for criteria, and repairs that fit outputs."""
        return replace(self, augment=Augment(), shuffle=False, drop_last=False)

    def first(self, images: int) -> Batches:
        """The same batches over the first `images` images only."""
        return replace(self, x=self.x[:images], y=self.y[:images])

    def to(self, device: torch.device | str) -> Batches:
        """The same batches with the images on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Scale and offset (C, 1, 1), so that x * scale + offset is the normalised image."""
        unit = 1 / 255 if self.x.dtype == torch.uint8 else 1.0
        mean = torch.tensor(self.mean, dtype=torch.float64)
        std = torch.tensor(self.std, dtype=torch.float64)
        shape = (-1, *[1] * max(self.x.dim() - 2, 0))
        scale, offset = (unit / std).float().reshape(shape), (-mean / std).float().reshape(shape)
        return scale.to(self.x.device), offset.to(self.x.device)

    def _normalised(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        if self.channels_last and x.dim() == 4:
            # to(float, channels_last) in one go: torch permutes uint8 an order of magnitude slower than it converts it
            return x.to(torch.float32, memory_format=torch.channels_last, copy=True).mul_(scale).add_(offset)
        return x.to(torch.float32, copy=True).mul_(scale).add_(offset)


def shifted(x: Tensor, down: Tensor, right: Tensor, border: int) -> Tensor:
    """Each image of x (B, C, H, W) cut out of its black-bordered copy at its own place (`down`, `right`, both (B,)).

    The windows are a view (B, C, 2P + 1, 2P + 1, H, W) of the padded batch; one gather picks each image's own.
    """
    height, width = x.shape[-2:]
    windows = F.pad(x, (border,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x), device=x.device), :, down, right]


@dataclass(frozen=True)
class BatchSettings:
    """How a data set is cut into batches. `holdout` images are taken from the training part; `augment` turns it on or off."""

    batch: int = 128
    test_batch: int = 500
    holdout: int = 5000
    augment: bool = True
    channels_last: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Loaders:
    """Batches of the three parts. `holdout` is None where none was asked for."""

    train: Batches
    holdout: Batches | None
    test: Batches


def loaders(data: DataSet, settings: BatchSettings, *, device: torch.device | str = "cpu") -> Loaders:
    """Batches of `data` on `device`: training shuffled and augmented, holdout and test in order and as they are."""
    train, holdout = data.splits(settings.holdout, settings.seed)

    def plain(part: tuple[Tensor, Tensor], size: int) -> Batches:
        batches = Batches(*part, batch=size, mean=data.mean, std=data.std, channels_last=settings.channels_last)
        return replace(batches, seed=settings.seed).to(device)

    augment = data.augment if settings.augment else Augment()
    return Loaders(
        train=replace(plain(train, settings.batch), shuffle=True, augment=augment, drop_last=len(train[0]) > settings.batch),
        holdout=plain(holdout, settings.test_batch) if settings.holdout else None,
        test=plain(data.test, settings.test_batch),
    )


def _mixed(seed: int, number: int) -> int:
    """One seed out of two, far apart for neighbouring epochs (Steele et al., 2014, the SplitMix64 constant)."""
    return (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % (1 << 63)
