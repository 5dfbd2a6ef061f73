"""Which entries stay: exact numbers of the best scores, alone, in groups, in blocks, or with a least number per row and column.

Shape legend: O outputs, I inputs, K kernel positions, U units (entries or blocks) of one weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from secateur.core.errors import SecateurError, nearest

Allocation = Literal["global", "uniform", "erk"]


@dataclass(frozen=True)
class Layout:
    """How kept entries are spread.

    `allocation` among layers: "global" takes the best scores of all, "uniform" the same share of each, "erk" a share
    proportional to (O + I + kernel sides) / (O * I * K) (Evci et al., 2020). `pattern` inside a layer: None, "2:4" (at most
    2 of every 4 inputs, in each layer; those whose inputs 4 does not divide stay dense), or "4x1" (blocks of 4 outputs by 1
    column of the (O, I * K) matrix). `occupancy` is the least number of entries in each output and each input channel: every
    layer gets what that takes before the rest is spread, as far as the number of all entries goes. The weight of a
    transposed convolution has its inputs first: there both sides change places.
    """

    allocation: Allocation = "global"
    pattern: str | None = None
    occupancy: int = 0

    def __post_init__(self) -> None:
        if self.allocation not in get_args(Allocation):
            found = f"allocation {self.allocation!r}"
            raise SecateurError("a layout", found, nearest(str(self.allocation), get_args(Allocation)))
        if isinstance(self.occupancy, bool) or not isinstance(self.occupancy, int) or self.occupancy < 0:
            raise SecateurError("a layout", f"occupancy {self.occupancy!r}", "give a whole number from 0")
        numbers = re.fullmatch(r"([1-9]\d?)([:x])([1-9]\d?)", self.pattern or "1x1")
        if not numbers or (numbers[2] == ":" and int(numbers[1]) >= int(numbers[3])):
            raise SecateurError("a layout", f"pattern {self.pattern!r}", 'give "2:4", "4:8" or blocks such as "4x1"')
        if self.pattern and self.occupancy:
            raise SecateurError("a layout", "a pattern and an occupancy", "give one of them")
        if self.of_group:
            object.__setattr__(self, "allocation", "uniform")

    def require(self, keep: float) -> None:
        """Raise `SecateurError` where the pattern leaves another share than `keep`."""
        if self.of_group and abs(keep - self.of_group[0] / self.of_group[1]) > 1e-9:
            do = f"give keep={self.of_group[0] / self.of_group[1]}"
            raise SecateurError(f"the pattern {self.pattern!r}", f"keep={keep!r}, which it does not leave", do)

    @property
    def of_group(self) -> tuple[int, int] | None:
        """(n, m) of an n:m pattern."""
        n, colon, m = (self.pattern or "").partition(":")
        return (int(n), int(m)) if colon else None

    @property
    def block(self) -> tuple[int, int]:
        """Sides of a block; (1, 1) without blocks."""
        rows, cross, columns = (self.pattern or "").partition("x")
        return (int(rows), int(columns)) if cross else (1, 1)

    def fits(self, weight: Tensor) -> bool:
        """Can the weight have this pattern?"""
        return self.of_group is None or weight.shape[1] % self.of_group[1] == 0


def largest(scores: Tensor, count: int) -> Tensor:
    """True for exactly `count` of `scores`, the largest; of equal ones the first.

    >>> largest(torch.tensor([3.0, 1.0, 3.0, 2.0]), 1).tolist()
    [True, False, False, False]
    """
    flat = scores.detach().reshape(-1)
    if not 0 < count < flat.numel():
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    least = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > least
    ties = (flat == least).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def counts_of(scores: Mapping[str, Tensor], keep: float, how: Allocation, *, least: int = 0) -> dict[str, int]:
    """Name to the number of units each layer keeps; together round(keep * all of them).

    What `least` entries in each row and column take comes first, the best of it where not all fits.
    """
    sizes = {name: value.numel() for name, value in scores.items()}
    total = round(keep * sum(sizes.values()))
    if how == "global":
        flat = torch.cat([value.detach().reshape(-1) for value in scores.values()])
        if least:
            first = torch.cat([needed(value, least).reshape(-1) for value in scores.values()])
            flat = _before(first, flat)
        kept = largest(flat, total)
        parts = kept.split(list(sizes.values()))
        return {name: int(part.sum()) for name, part in zip(sizes, parts, strict=True)}
    shares = dict.fromkeys(sizes, keep) if how == "uniform" else erk({n: tuple(v.shape) for n, v in scores.items()}, keep)
    wanted = {name: shares[name] * sizes[name] for name in sizes}
    found = {name: int(value + 1e-9) for name, value in wanted.items()}
    # what rounding down has left over goes to the largest remainders
    for name in sorted(sizes, key=lambda name: found[name] - wanted[name])[: max(total - sum(found.values()), 0)]:
        found[name] = min(found[name] + 1, sizes[name])
    return _raised(found, {name: int(needed(value, least).sum()) for name, value in scores.items()}) if least else found


def _raised(counts: dict[str, int], floors: Mapping[str, int]) -> dict[str, int]:
    """`counts` of the same sum, none below its floor; as they are where the floors do not fit."""
    if sum(floors.values()) > sum(counts.values()):
        return counts
    found = {name: max(count, floors[name]) for name, count in counts.items()}
    over = sum(found.values()) - sum(counts.values())
    room = sum(found[name] - floors[name] for name in found)
    for name in found:  # each gives its share of what is to spare
        spare = found[name] - floors[name]
        give = -(-over * spare // room) if room else 0
        found[name], over, room = found[name] - give, over - give, room - spare
    return found


def _before(first: Tensor, scores: Tensor) -> Tensor:
    """`scores` lifted where `first`, so that all of these rank before the others."""
    wide = scores.double()
    return wide + first * (2 * wide.abs().amax() + 1)


def erk(shapes: Mapping[str, Sequence[int]], keep: float) -> dict[str, float]:
    """Erdos-Renyi-kernel densities (Evci et al., 2020): proportional to sum / product of the shape, none above 1."""
    raw = {name: sum(shape) / prod(shape) for name, shape in shapes.items()}
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in full]
        room = keep * sum(sizes.values()) - sum(sizes[name] for name in full)
        scale = room / max(sum(raw[name] * sizes[name] for name in rest), 1e-12)
        over = {name for name in rest if scale * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in full else scale * raw[name] for name in shapes}
        full |= over


def choose(scores: Tensor, count: int, layout: Layout) -> Tensor:
    """The mask of `count` units of `scores`, in the shape of the scores, as `layout` has them."""
    if layout.of_group is not None:
        n, m = layout.of_group
        return _in_groups(scores, max(n, -(-count * m // max(scores.numel(), 1))), m)
    if not layout.occupancy:
        return largest(scores, count)
    return largest(_before(needed(scores, layout.occupancy), scores), count)


def needed(scores: Tensor, least: int) -> Tensor:
    """True for the best `least` entries of every output and of every input channel of `scores` (O, I, K...)."""
    cube = scores.detach().reshape(scores.shape[0], scores.shape[1], -1)
    mask = torch.zeros(cube.shape, dtype=torch.bool, device=cube.device)
    rows = cube.flatten(1).topk(min(least, cube[0].numel()), dim=1).indices
    mask.view(cube.shape[0], -1).scatter_(1, rows, True)
    columns = cube.transpose(0, 1).flatten(1)  # I, O * K
    best = columns.topk(min(least, columns.shape[1]), dim=1).indices
    across = torch.zeros_like(columns, dtype=torch.bool).scatter_(1, best, True)
    return (mask | across.view(cube.shape[1], cube.shape[0], -1).transpose(0, 1)).reshape(scores.shape)


def _in_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """The best `n` of every `m` neighbours along the inputs (dim 1)."""
    last = scores.detach().transpose(1, -1)  # neighbours along the last dim
    groups = last.reshape(-1, m)
    best = groups.topk(min(n, m), dim=1).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)
    return mask.reshape(last.shape).transpose(1, -1).contiguous()


def to_units(entries: Tensor, block: tuple[int, int]) -> Tensor:
    """Scores of units from scores of entries (O, I, ...): sums over blocks, or the entries themselves."""
    if block == (1, 1):
        return entries
    matrix = entries.detach().flatten(1)
    padded = functional.pad(matrix, (0, -matrix.shape[1] % block[1], 0, -matrix.shape[0] % block[0]))
    return padded.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0])).sum((1, 3))


def to_entries(units: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    """The mask of entries (O, I, ...) that a mask of units stands for."""
    if block == (1, 1):
        return units
    whole = units.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return whole[: shape[0], : prod(shape[1:])].reshape(shape).contiguous()
