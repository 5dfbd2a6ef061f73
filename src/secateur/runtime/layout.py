"""Where a tensor's numbers lie in the engine's memory: channel by channel, rows with gaps of zeros between them.

kernels/engine.h gives the address of an element. A gap as wide as the padding of the convolutions that read the tensor turns
each of their taps into one shift, for all pixels alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod

import numpy as np

from secateur.runtime.library import Plane

LINE = 16
"""Floats in a line of cache, and in the widest vector."""


def round_up(count: int, unit: int = LINE) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit


@dataclass(frozen=True)
class Layout:
    """Sizes in elements; `row` counts positions, `image`, `channel` and `lead` floats (engine.h)."""

    channels: int
    images: int
    height: int
    width: int
    lanes: int
    row: int
    image: int
    channel: int
    lead: int

    @property
    def groups(self) -> int:
        """Groups of `lanes` images."""
        return -(-self.images // self.lanes)

    @property
    def span(self) -> int:
        """Floats of one image, from its first to its last pixel."""
        return ((self.height - 1) * self.row + self.width) * self.lanes

    @property
    def size(self) -> int:
        """Floats of the whole tensor."""
        return self.channels * self.channel

    @property
    def single(self) -> bool:
        """One pixel per image."""
        return self.height == self.width == 1

    def of(self, channels: int) -> Layout:
        """The same with another number of channels."""
        return replace(self, channels=channels)

    def plane(self) -> Plane:
        """As the kernels read it."""
        return Plane(**{field.name: getattr(self, field.name) for field in fields(self)})

    def mask(self) -> np.ndarray | None:
        """int32 of one image: -1 where there is data, 0 in gaps; None where there are none to keep."""
        if self.single or (self.row == self.width and self.span % LINE == 0):
            return None
        mask = np.zeros(round_up(self.span) + LINE * self.lanes, np.int32)
        rows = np.arange(self.height)[:, None] * self.row + np.arange(self.width)[None]
        mask[(rows[..., None] * self.lanes + np.arange(self.lanes)).ravel()] = -1
        return mask


def spread(channels: int, images: int, height: int, width: int, *, lanes: int, gap: tuple[int, int], ahead: int = -1) -> Layout:
    """A layout with `gap` = (rows, columns) of zeros; `ahead`: floats of zeros before the first pixel, if not the gap's.

    An odd number of lines per channel spreads channels over all sets of a cache.
    """
    row = width + gap[1]
    lead = round_up((gap[0] * row + gap[1]) * lanes if ahead < 0 else ahead)
    image = round_up((height + gap[0]) * row * lanes)
    channel = _odd(lead + -(-images // lanes) * image)
    return Layout(channels, images, height, width, lanes, row, image, channel, lead)


def flat(channels: int, images: int) -> Layout:
    """One value per channel and image: images side by side; a single image's channels side by side."""
    if images == 1:
        return Layout(channels, 1, 1, 1, 1, 1, 1, 1, 0)
    lanes = round_up(images)
    return Layout(channels, images, 1, 1, lanes, 1, lanes, _odd(lanes), 0)


def _odd(floats: int) -> int:
    return floats + LINE if (floats // LINE) % 2 == 0 else floats


def sizes(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """(channels, images, height, width) of a tensor: N, C, H, W, or any leading dimensions before features."""
    if len(shape) == 4:
        return shape[1], shape[0], shape[2], shape[3]
    return shape[-1], prod(shape[:-1]), 1, 1


@dataclass(frozen=True)
class Reach:
    """What a convolution reads along one dimension: its taps as (phase, shift), and how far shifts go."""

    taps: tuple[tuple[int, int], ...]
    first: int
    phases: int

    @property
    def low(self) -> int:
        """The most negative shift, at most 0."""
        return min(0, *(shift for _, shift in self.taps))

    @property
    def high(self) -> int:
        """The largest shift, at least 0."""
        return max(0, *(shift for _, shift in self.taps))

    def width(self, size: int, stride: int) -> int:
        """Elements of the longest phase of `size` elements."""
        return -(-(size - self.first) // stride)


def reach(kernel: int, stride: int, padding: int, dilation: int) -> Reach:
    """Tap k reads element k * dilation - padding + stride * output: phase = its residue, shift = its quotient."""
    steps = [k * dilation - padding for k in range(kernel)]
    taps = tuple((step % stride, step // stride) for step in steps)
    first = min(phase for phase, _ in taps)
    return Reach(taps, first, max(phase for phase, _ in taps) - first + 1)
