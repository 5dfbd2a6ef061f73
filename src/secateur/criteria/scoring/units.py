"""What a Scoring Net reads of a model: one row per unit, one row per axis.

Shape legend: A free axes, U units of all of them, F statistics, C entries of context, N units of one axis, D weights of a unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.criteria.fpgm import sum_of_distances
from secateur.criteria.places import Place, parameters, places
from secateur.criteria.scoring.counts import unit_costs
from secateur.criteria.scoring.flows import FLOWS, Flows, columns
from secateur.criteria.scoring.sets import sets_of
from secateur.criteria.scoring.settings import NetSettings
from secateur.criteria.scoring.slopes import Slopes

KINDS = ("channel", "hidden", "head", "head_dim", "group", "rank", "width")
STATS = 10
SLOPES = 5
CONTEXT = 12 + len(KINDS)
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Units:
    """What a net reads of one model.

    `stats` (U, F) standardised within each axis, but for a first column of relative sizes where the net reads them;
    `context` (A, C), the same for all units of an axis; `owner` (U,) the axis of each unit; `alike` (U,) the largest cosine to
    another unit; `apart` (U,) standardised distance from the others; `dead` (U,) units without weights; `first` (U,) the first
    unit that is equal in every bit; `prior` (U,) the logarithm of the relative L1 norm, or what `flows` say, in deviations;
    `spread` that deviation; `flows` (U, F) of `Flows`, without columns where the net reads none; `sets` one tensor
    (N, members, entries) per axis for the raw encoder; `bare` where a net reads flows and there are none, which makes it L1.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    owner: Tensor
    stats: Tensor
    context: Tensor
    alike: Tensor
    apart: Tensor
    dead: Tensor
    first: Tensor
    prior: Tensor
    flows: Tensor
    spread: float = 0.0
    bare: bool = False
    sets: tuple[Tensor, ...] = ()

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """(U,) to axis name and (N,)."""
        return dict(zip(self.names, values.split(list(self.sizes)), strict=True))


def units_of(
    model: nn.Module, axes: Axes, settings: NetSettings, slopes: Slopes | None = None, flows: Flows | None = None
) -> Units:
    """The rows of every free axis of `model`. `slopes` are needed where `settings.gradients` is set.

    Statistics of a unit are those of the weights that write it, all writers of a residual sum as one vector, and of the
    weights that read it: any axis has them, channels as well as heads and ranks.
    """
    weights = parameters(model)
    costs = {what: unit_costs(axes, what) for what in ("macs", "params")}
    position = {axis.name: number for number, axis in enumerate(axes)}
    rows = [_Rows(model, axis, weights, slopes) for axis in axes.free]
    context = [
        row.context(number / max(len(rows) - 1, 1), [float(costs[what][position[row.axis.name]]) for what in costs], settings)
        for number, row in enumerate(rows)
    ]
    stats = [row.stats(relative=settings.relative) for row in rows]
    prior = torch.cat([row.prior() for row in rows] or [torch.zeros(0)])
    table = prior.new_zeros(len(prior), 0)
    if settings.prior == "flows" and flows is None:
        table = prior.new_zeros(len(prior), FLOWS)
    elif flows is not None and settings.prior == "flows":
        macs = [float(costs["macs"][position[row.axis.name]]) for row in rows]
        table, prior = columns(axes, macs, prior.exp().split([row.axis.units for row in rows]), flows)
    prior, spread = _in_deviations(prior, rows)
    return Units(
        names=tuple(axis.name for axis in axes.free),
        sizes=tuple(axis.units for axis in axes.free),
        owner=torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([axis.units for axis in axes.free], dtype=torch.int64)
        ),
        stats=torch.cat(stats).float() if stats else torch.zeros(0, STATS + settings.relative),
        context=torch.stack(context) if context else torch.zeros(0, CONTEXT),
        alike=torch.cat([row.alike for row in rows]).float() if rows else torch.zeros(0),
        apart=torch.cat([standard(row.apart[:, None])[:, 0] for row in rows]).float() if rows else torch.zeros(0),
        dead=torch.cat([row.dead for row in rows]) if rows else torch.zeros(0, dtype=torch.bool),
        first=_first([row.key for row in rows]),
        prior=prior.float(),
        flows=table.float(),
        spread=spread if settings.prior == "l1" else 0.0,
        bare=settings.prior == "flows" and flows is None,
        sets=tuple(sets_of(row.writers, slopes if settings.gradients else None) for row in rows)
        if settings.encoder == "raw"
        else (),
    )


def standard(values: Tensor) -> Tensor:
    """Columns (N, F) with mean 0 and deviation 1; a column that is the same everywhere, up to rounding, becomes 0."""
    mean = values.mean(0)
    deviation = values.std(0, unbiased=False)
    size = values.abs().amax(0)
    return torch.where(deviation > 1e-6 * size, (values - mean) / deviation.clamp_min(TINY * TINY), 0.0)


class _Rows:
    """The weights of one axis, looked at once."""

    def __init__(self, model: nn.Module, axis: Axis, weights: Mapping[str, nn.Parameter], slopes: Slopes | None) -> None:
        self.model, self.axis, self.slopes = model, axis, slopes
        writing = any(slot.role == "write" and slot.tensor in weights and weights[slot.tensor].dim() > 1 for slot in axis.slots)
        self.writers = places(axis, weights, group=not writing)
        self.written = torch.cat([_rows(place) for place in self.writers], 1)  # (N, D)
        read = [slot for slot in axis.readers() if slot.tensor in weights]
        self.readers = places(replace(axis, slots=tuple(read)), weights) if read else []
        reading = [_rows(place) for place in self.readers]
        norms = [rows.square().sum(1) for rows in reading]
        self.out = torch.stack(norms).sum(0).sqrt() if norms else torch.zeros(axis.units, dtype=torch.float64)
        self.gamma, self.beta, self.sigma = (_scale(model, axis, name) for name in ("weight", "bias", "running_var"))
        self.sigma = self.sigma.clamp_min(0).sqrt()
        gram = self.written @ self.written.T
        size = gram.diagonal().sqrt()
        cosine = gram / (size[:, None] * size).clamp_min(TINY * TINY)
        self.alike = cosine.fill_diagonal_(-1).amax(1) if axis.units > 1 else torch.full((1,), -1.0, dtype=torch.float64)
        self.apart = sum_of_distances([self.written]) / axis.units
        self.places = places(axis, weights)
        self.without_biases = places(axis, weights, biases=False)
        biases = [_rows(p) for p in self.places if p.parameter.dim() == 1 and _is_bias_of_writer(p, axis, weights)]
        silent = ~torch.cat([self.written, *biases], 1).bool().any(1)
        self.key = torch.cat([self.written, *biases, *reading, self.gamma[:, None], self.beta[:, None], self.sigma[:, None]], 1)
        self.dead = silent | (~self.out.bool() if self.readers else torch.zeros_like(silent))

    def stats(self, *, relative: bool) -> Tensor:
        """(N, F), standardised within the axis; `relative` puts the logarithm of the size over the mean size before them."""
        w = self.written
        n = w.shape[1]
        l2 = w.square().sum(1).sqrt()
        gain = l2.clamp_min(TINY).log() + self.out.clamp_min(TINY).log()
        if self.gamma.bool().any():
            gain = gain + self.gamma.abs().clamp_min(TINY).log() - self.sigma.clamp_min(1e-6).log()
        size = [w.abs().sum(1) / n, l2 / math.sqrt(n), w.mean(1), w.std(1, unbiased=False), w.abs().amax(1)]
        columns = [*size, self.out, self.gamma, self.beta, self.sigma, gain]
        over = (gain - gain.exp().mean().clamp_min(TINY).log()).clamp(-5, 5)[:, None]
        return torch.cat([*([over] if relative else []), standard(torch.stack(columns, 1)), self._slopes()], 1)

    def prior(self) -> Tensor:
        """(N,): the logarithm of the L1 norm of the weights that go with a unit, over the mean of the axis: `criteria.l1`."""
        norms = torch.stack([_rows(place).abs().sum(1) for place in self.without_biases]).sum(0)
        return (norms / norms.mean().clamp_min(TINY)).clamp_min(1e-3).log()

    def _slopes(self) -> Tensor:
        if self.slopes is None:
            return torch.zeros(self.axis.units, 0, dtype=torch.float64)
        return standard(self.slopes.of(self.writers, self.readers))

    def context(self, depth: float, costs: Sequence[float], settings: NetSettings) -> Tensor:
        """(C,): depth, sizes, cost of a unit, kind; and the logarithm of the axis' scale unless that is left out."""
        weight = self.writers[0].parameter
        taps = weight[0, 0].numel() if weight.dim() > 2 else 1
        size = self.written.square().mean().sqrt().clamp_min(TINY).log()
        logs = [math.log(max(cost * self.axis.units, 1e-9)) / 5 for cost in costs]
        scale = (
            [float(size) / 5, float(self.out.square().mean().sqrt().clamp_min(TINY).log()) / 5]
            if settings.scale
            else [0.0, 0.0]
        )
        writing = sum(slot.role == "write" for slot in self.axis.slots)
        numbers = [
            depth,
            math.log2(self.axis.units) / 10,
            math.log2(self.written.shape[1]) / 10,
            math.sqrt(taps) / 3,
            float(_stride(self.model, self.axis)) - 1,
            *logs,
            *scale,
            float(weight.dim() > 2),
            float(len(self.writers) > 1 or writing > 2),
            float(self.gamma.bool().any()),
        ]
        kind = [float(self.axis.kind == known) for known in KINDS]
        return torch.tensor([*numbers, *kind], dtype=torch.float32)


def _in_deviations(found: Tensor, rows: Sequence[_Rows]) -> tuple[Tensor, float]:
    """`found` (U,) over the deviation of all units that are not dead, which leaves their order as it is; and that."""
    if not rows:
        return torch.zeros(0, dtype=torch.float64), 0.0
    dead = torch.cat([row.dead for row in rows])
    deviation = float(found[~dead].std(unbiased=False)) if not dead.all() else 0.0
    return (found / deviation, deviation) if deviation > 1e-6 else (torch.zeros_like(found), 0.0)


def _first(keys: Sequence[Tensor]) -> Tensor:
    """For every unit the position of the first one of its axis with the same row; (U,)."""
    found: list[int] = []
    for rows in keys:
        start = len(found)
        seen: dict[bytes, int] = {}
        for number, row in enumerate(rows.numpy()):
            found.append(start + seen.setdefault(row.tobytes(), number))
    return torch.tensor(found, dtype=torch.int64)


def _rows(place: Place) -> Tensor:
    """All entries of each unit (N, E * rest), in double precision on the CPU."""
    return place.rows().double().cpu()


def _is_bias_of_writer(place: Place, axis: Axis, weights: Mapping[str, nn.Parameter]) -> bool:
    """Is it the bias beside a weight that writes the units? It keeps a unit with zero weights from being dead."""
    named = {id(weights[slot.tensor]) for slot in axis.writers() if slot.tensor in weights and weights[slot.tensor].dim() == 1}
    return id(place.parameter) in named


def _scale(model: nn.Module, axis: Axis, name: str) -> Tensor:
    """Mean over the norms on the axis of that parameter or buffer of each unit (N,); zeros where there is none."""
    found = []
    for slot in axis.slots:
        path, _, last = slot.tensor.rpartition(".")
        if slot.dim != 0 or last != name or slot.role != "scale":
            continue
        try:
            tensor = getattr(model.get_submodule(path), name)
        except AttributeError:
            continue
        if isinstance(tensor, Tensor) and tensor.dim() == 1:
            index = torch.from_numpy(slot.of(torch.arange(axis.units).numpy()))
            found.append(tensor.detach().double().cpu()[index].mean(1))
    return torch.stack(found).mean(0) if found else torch.zeros(axis.units, dtype=torch.float64)


def _stride(model: nn.Module, axis: Axis) -> int:
    for slot in axis.writers():
        try:
            stride = getattr(model.get_submodule(slot.tensor.rpartition(".")[0]), "stride", 1)
        except AttributeError:
            continue
        return int(stride[0] if isinstance(stride, tuple) else stride)
    return 1
