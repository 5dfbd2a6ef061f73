"""Where a tensor's numbers lie in the engine's memory: channel by channel, rows with gaps of zeros between them.

kernels/engine.h gives the address of an element. A gap as wide as the padding of the convolutions that read the tensor turns
each of their taps into one shift, for all pixels alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod

import numpy as np

from secateur.runtime.structs import Plane

LINE = 16
"""Floats in a line of cache, and in the widest vector."""
SMALL = 7
"""Lines of a channel that a tile reads whole."""
MASKS = {4: np.int32, 2: np.int16, 1: np.int8}
"""What masks are made of, by the bytes of an element."""


def round_up(count: int, unit: int = LINE) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit


@dataclass(frozen=True)
class Layout:
    """Sizes in elements; `row` counts positions, `bytes` those of an element: 4 is float32, 2 is bf16, 1 is a byte (engine.h).

    `zero`: the byte that fills gaps.
    """

    channels: int
    images: int
    height: int
    width: int
    lanes: int
    row: int
    image: int
    channel: int
    lead: int
    bytes: int = 4
    zero: int = 0

    @property
    def line(self) -> int:
        """Elements in a line of cache."""
        return 64 // self.bytes

    @property
    def groups(self) -> int:
        """Groups of `lanes` images."""
        return -(-self.images // self.lanes)

    @property
    def span(self) -> int:
        """Elements of one image, from its first to its last pixel."""
        return ((self.height - 1) * self.row + self.width) * self.lanes

    @property
    def size(self) -> int:
        """Floats the whole tensor takes."""
        return -(-(self.lead + self.channels * self.channel) * self.bytes // 4)

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
        """Integers of one image, as wide as elements: -1 where there is data, 0 in gaps; None where there are none to keep."""
        if self.single or (self.row == self.width and self.span % self.line == 0):
            return None
        mask = np.zeros(round_up(self.span, self.line) + self.line * self.lanes, MASKS[self.bytes])
        rows = np.arange(self.height)[:, None] * self.row + np.arange(self.width)[None]
        mask[(rows[..., None] * self.lanes + np.arange(self.lanes)).ravel()] = -1
        return mask


def spread(
    channels: int, images: int, height: int, width: int, *, lanes: int, gap: tuple[int, int], ahead: int = -1, size: int = 4,
    zero: int = 0, line: int = 0,
) -> Layout:  # fmt: skip
    """A layout with `gap` = (rows, columns) of zeros; `ahead`: elements of zeros before the first pixel, if not the gap's;
    `line`: elements whose multiples sizes are, if not those of a line of cache.

    The zeros behind an image are those before the next one, of the next channel too: `lead` of them come before the first
    alone, unless `ahead` wants others. An odd number of lines per channel spreads large ones over all sets of a cache.
    """
    row, line = width + gap[1], line or 64 // size
    lead = round_up((gap[0] * row + gap[1]) * lanes if ahead < 0 else ahead, line)
    image = round_up((height + gap[0]) * row * lanes, line)
    channel = -(-images // lanes) * image + (lead if ahead >= 0 else 0)
    channel = channel if channel <= SMALL * line else _odd(channel, line)
    return Layout(channels, images, height, width, lanes, row, image, channel, lead, size, zero)


def flat(channels: int, images: int, size: int = 4, *, zero: int = 0, line: int = 0) -> Layout:
    """One value per channel and image: images side by side; a single image's channels side by side, always in float32."""
    if images == 1:
        return Layout(channels, 1, 1, 1, 1, 1, 1, 1, 0)
    line = line or 64 // size
    lanes = round_up(images, line)
    return Layout(channels, images, 1, 1, lanes, 1, lanes, _odd(lanes, line), 0, size, zero)


def _odd(elements: int, line: int) -> int:
    return elements + line if (elements // line) % 2 == 0 else elements


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
