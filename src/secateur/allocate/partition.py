"""Which unit belongs to which worker, so that the weights between workers, which go, are the least.

Shape legend: O out, I in, N units of an axis, W workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import eigsh
from torch import nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan, split
from secateur.core.split import Split, blocks_of
from secateur.surgery import splittable

Owners = dict[str, np.ndarray]
"""Axis name to the worker of each unit; (N,)."""


@dataclass(frozen=True, eq=False)
class Link:
    """A layer between two axes: `size` (N out, N in), the absolute weights between their units, and their channels."""

    module: str
    writes: str
    reads: str
    size: np.ndarray
    outputs: np.ndarray
    inputs: np.ndarray


def partition(
    model: nn.Module, axes: Axes, workers: int = 2, *, kernels: bool = False, ends: bool = False, tries: int = 4, seed: int = 0
) -> Plan:
    """The plan that makes layers block-diagonal over `workers`, so that worker w needs nothing of the others.

    Every axis is divided among the workers in equal parts. A linear layer or 1 x 1 convolution (with `kernels` any
    convolution without groups) between two such axes keeps the weights inside a worker's part; layers that share an axis
    share its division, so what one writes the next reads where it is. Axes that are fixed (inputs, outputs) stay with all
    workers, and so do layers at them; with `ends` they are divided too, each layer's on its own. Axes whose units cannot be
    shared out in equal parts, and the layers at them, stay whole.

    The division keeps the most absolute weight: from the best of `tries` starts (one by spectral co-clustering, the others
    random by `seed`) each axis in turn is assigned anew given the others, by the Hungarian method, until nothing gains.
    Raises `SecateurError` where no layer can be divided.

    Source: the abstract of Shahhosseini et al., 2019 (Partition Pruning); the objective and the search are ours, the paper's
    text could not be had. Spectral start: Dhillon, 2001.
    """
    if type(workers) is not int or workers < 2:
        raise SecateurError(
            f"a partition over {workers} workers", "nothing to divide", "give a whole number of two workers or more"
        )
    if not isinstance(tries, Integral) or tries < 1 or not isinstance(seed, Integral) or seed < 0:
        found, do = f"tries={tries!r} and seed={seed!r}", "give whole numbers, tries from 1 and a seed from 0"
        raise SecateurError(f"a partition over {workers} workers", found, do)
    links = links_of(model, axes, workers, kernels=kernels, ends=ends)
    if not links:
        do = "give a number of workers that divides their widths, or kernels=True or ends=True"
        raise SecateurError(f"a partition over {workers} workers", "no layer between two axes that divide", do)
    units = {name: n for link in links for name, n in zip((link.writes, link.reads), link.size.shape, strict=True)}
    draw = np.random.default_rng(seed)
    starts = [_spectral(links, units, workers)]
    starts += [{name: draw.permutation(np.arange(n) % workers) for name, n in units.items()} for _ in range(tries - 1)]
    best = max((_settled(links, start, workers) for start in starts), key=lambda owners: retained(links, owners))
    return split(axes.fingerprint, [_blocks(link, best, workers) for link in links])


def shares(plan: Plan, model: nn.Module) -> dict[str, float]:
    """Layer name to the share of its absolute weight that its blocks keep."""
    kept: dict[str, float] = {}
    for step in plan.steps:
        for blocks in step.layers if isinstance(step, Split) else ():
            size = _size(model.get_submodule(blocks.module))
            inside = sum(size[np.ix_(o, i)].sum() for o, i in zip(blocks.outputs, blocks.inputs, strict=True))
            kept[blocks.module] = float(inside / max(size.sum(), 1e-30))
    return kept


def links_of(model: nn.Module, axes: Axes, workers: int, *, kernels: bool, ends: bool) -> list[Link]:
    """The layers that can be divided, in the order of the model."""
    links = []
    for name in splittable(model):
        module: Any = model.get_submodule(name)
        if module.weight.dim() > 2 and module.weight[0, 0].numel() > 1 and not kernels:
            continue
        size = _size(module)
        one, two = (_side(axes, f"{name}.weight", dim, size.shape[dim], workers, ends) for dim in (0, 1))
        if one is None or two is None or one[0] == two[0]:
            continue
        (writes, outputs), (reads, inputs) = one, two
        units = size[outputs][:, :, inputs].sum((1, 3))  # (N out, E, N in, E) summed over entries
        if not np.isfinite(units).all():
            found = f"weights of {name!r} that are infinite or not a number"
            raise SecateurError(f"a partition over {workers} workers", found, "give weights of a training that did not diverge")
        links.append(Link(name, writes, reads, units, outputs, inputs))
    return links


def _side(axes: Axes, tensor: str, dim: int, length: int, workers: int, ends: bool) -> tuple[str, np.ndarray] | None:
    """The axis along a dim of a weight and the channels (N, E) of its units; None where there is none to divide."""
    free: list[tuple[Axis, np.ndarray]] = []
    for axis in axes.free:
        places = [slot.of(np.arange(axis.units)) for slot in axis.slots if (slot.tensor, slot.dim) == (tensor, dim)]
        free += [(axis, channels) for channels in places]
    if len(free) == 1:
        axis, channels = free[0]
        return (axis.name, channels) if channels.size == length and axis.units % workers == 0 else None
    if ends and not free and length % workers == 0:
        return f"{tensor}[{dim}]", np.arange(length)[:, None]
    return None


def _size(module: nn.Module) -> np.ndarray:
    """Absolute weights summed over the kernel; (O, I)."""
    weight: Any = module.weight
    return weight.detach().abs().flatten(2).sum(-1).double().cpu().numpy() if weight.dim() > 2 else _plain(weight)


def _plain(weight: Any) -> np.ndarray:
    return weight.detach().abs().double().cpu().numpy()


def retained(links: Sequence[Link], owners: Mapping[str, np.ndarray]) -> float:
    """Absolute weight inside the parts, each layer's as a share of its own."""
    return sum(
        float(link.size[owners[link.writes][:, None] == owners[link.reads]].sum() / max(link.size.sum(), 1e-30))
        for link in links
    )


def _settled(links: Sequence[Link], owners: Owners, workers: int) -> Owners:
    """The owners after each axis in turn was assigned anew, until nothing gains."""
    owners, best = dict(owners), retained(links, owners)
    while True:
        before = best
        for name in owners:
            gain = np.zeros((len(owners[name]), workers))
            for link in links:
                scaled = link.size / max(link.size.sum(), 1e-30)
                if link.writes == name:
                    gain += scaled @ np.eye(workers)[owners[link.reads]]
                elif link.reads == name:
                    gain += scaled.T @ np.eye(workers)[owners[link.writes]]
            trial = {**owners, name: balanced(gain)}
            if (value := retained(links, trial)) > best + 1e-12:
                owners, best = trial, value
        if best <= before:
            return owners


def balanced(gain: np.ndarray) -> np.ndarray:
    """The owners (N,) of largest total `gain` (N, W) among those that give every worker N / W units."""
    units, workers = gain.shape
    _, columns = linear_sum_assignment(np.repeat(gain, units // workers, axis=1), maximize=True)
    return columns // (units // workers)


def _spectral(links: Sequence[Link], units: Mapping[str, int], workers: int) -> Owners:
    """Owners by the leading eigenvectors of the weights between all units of all axes, normalised by their sums."""
    starts = dict(zip(units, np.cumsum([0, *units.values()]), strict=False))
    total = sum(units.values())
    matrix: Any = csr_array((total, total))
    for link in links:
        rows, columns = np.indices(link.size.shape)
        at = (rows.ravel() + starts[link.writes], columns.ravel() + starts[link.reads])
        matrix = matrix + coo_array((link.size.ravel() / max(link.size.sum(), 1e-30), at), (total, total))
    matrix = matrix + matrix.T
    scale = 1 / np.sqrt(np.maximum(matrix.sum(1), 1e-30))
    matrix = matrix * scale[:, None] * scale
    count = min(workers, total - 1)
    _, vectors = eigsh(matrix, k=count, v0=np.ones(total))
    points = vectors * scale[:, None]
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-30)
    centres = _centres(points, workers)
    return {name: balanced(points[starts[name] : starts[name] + n] @ centres.T) for name, n in units.items()}


def _centres(points: np.ndarray, count: int) -> np.ndarray:
    """`count` directions that lie far apart among `points`, moved to the means of those nearest to them."""
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int((points @ points[chosen].T).max(1).argmin()))
    centres = points[chosen]
    for _ in range(10):
        nearest = (points @ centres.T).argmax(1)
        centres = np.stack([points[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-30)
    return centres


def _blocks(link: Link, owners: Owners, workers: int) -> Any:
    sides = []
    for channels, name in ((link.inputs, link.reads), (link.outputs, link.writes)):
        owner = np.empty(channels.size, dtype=np.int64)
        owner[channels] = owners[name][:, None]
        sides.append(owner.tolist())
    return blocks_of(link.module, sides[0], sides[1], workers)
