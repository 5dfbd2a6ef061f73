"""The Scoring Net: a small network, shared by all layers, that reads each unit and gives it a score.

Shape legend: U units, A axes, N units of one axis, F statistics, C context, W width, M members of a set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError, nearest
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.criteria.scoring.flows import FLOWS, Flows
from secateur.criteria.scoring.sets import TAPS
from secateur.criteria.scoring.settings import NetSettings
from secateur.criteria.scoring.slopes import Slopes
from secateur.criteria.scoring.units import CONTEXT, SLOPES, STATS, Units, units_of

POOLED = 64


class ScoringNet(nn.Module):
    """One score per unit of any axis of any network; higher is dearer.

    Linear-LayerNorm-GELU-Linear-GELU on what is known of the unit and its layer, a residual look at the other units of the
    axis, a linear head, beside a linear look at the statistics, which starts as the product of the norms of what writes and
    what reads the unit: an untrained net is a criterion of norms. From that is taken what the unit shares with another: a
    non-negative multiple of its largest cosine with one, less a non-negative multiple of its distance from the others, so of
    two units that are otherwise equal the one that has a twin is never dearer. A unit without weights has a score of 0 and
    all others a positive one. With a `prior` all that is learned is a bounded correction of that criterion; it starts at
    zero, and its mean over the network is taken off before it is bounded: what all units share ranks none, and would end at
    the bound.

    The scores follow a permutation of the units; equal units have equal scores, and allocators then go by index.
    Source: "ScoringNet" (Wang, 2023, Scientific Programming) names the idea, one network from weights and gradients to
    scores, of which no code is public; the architecture is ours.
    """

    def __init__(self, settings: NetSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or NetSettings()
        if not isinstance(settings, NetSettings):
            raise SecateurError("a Scoring Net", f"settings of type {type(settings).__name__}", "give NetSettings")
        self.shown = STATS + settings.relative
        known = self.shown + (SLOPES if settings.gradients else 0)
        if settings.encoder == "raw":
            wide = TAPS * (2 if settings.gradients else 1)
            self.members = nn.Sequential(nn.Linear(wide, POOLED // 2), nn.GELU(), nn.Linear(POOLED // 2, POOLED // 2))
            known = POOLED
        known += FLOWS if settings.prior == "flows" else 0
        wide = settings.width
        told = CONTEXT if settings.prior == "none" else 1
        self.body = nn.Sequential(
            nn.Linear(known + told, wide), nn.LayerNorm(wide), nn.GELU(), nn.Linear(wide, wide), nn.GELU()
        )
        self.look = nn.Linear(wide, wide) if settings.context == "deepsets" else None
        self.attend = nn.Linear(wide, 3 * wide) if settings.context == "attention" else None
        self.head = nn.Linear(wide, 1, bias=settings.prior == "none")
        self.start = nn.Linear(self.shown, 1, bias=False)
        self.twin = nn.Linear(told, 2)
        nn.init.zeros_(self.head.weight)  # training starts from a norm: the size of a unit's weights within its axis
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.start.weight)
        nn.init.zeros_(self.twin.weight)
        nn.init.constant_(self.twin.bias, -2.0 if settings.prior == "none" else 0.0)
        if settings.prior == "none":
            self.start.weight.data[0, 0 if settings.relative else STATS - 1] = 1.0

    def forward(self, units: Units) -> Tensor:
        """Raw scores (U,), any real numbers. Raises `SecateurError` for a net that was moved or cast."""
        weight = self.start.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            do = "call net.float().cpu(): it is small, and what it scores may be anywhere"
            raise SecateurError("scores by a Scoring Net", f"a net of {weight.dtype} on {weight.device}", do)
        residual = self.settings.prior != "none"
        context = units.context.new_ones(len(units.owner), 1) if residual else units.context[units.owner]  # (U, C)
        x = self._encoded(units)
        h = self.body(torch.cat([x, context], 1))
        h = h + self._seen(h, units)
        less, more = (self.twin(context).clamp_min(0) if residual else F.softplus(self.twin(context))).unbind(1)
        raw = (self.head(h) + self.start(units.stats[:, : self.shown])).squeeze(1) - less * units.alike + more * units.apart
        if residual:
            bound = self.settings.bound * self._followed(units)
            raw = units.prior + bound * torch.tanh((raw - raw.mean()) / self.settings.bound)
        return raw[units.first]  # a matrix product may round equal rows differently

    def scores(self, units: Units) -> dict[str, Tensor]:
        """Axis name to scores (N,), positive in double precision; 0 for dead units."""
        return self.positive(units, self(units))

    @staticmethod
    def positive(units: Units, raw: Tensor) -> dict[str, Tensor]:
        """The scores that raw ones (U,) stand for."""
        return units.split(torch.where(units.dead, 0.0, F.softplus(raw.double().clamp(-600, None))))

    def criterion(self, model: nn.Module, axes: Axes, slopes: Slopes | None = None, *, flows: Flows | None = None) -> Criterion:
        """Scores of `model` in one pass, without training. `flows` are for a net of that prior, which is L1 without them.

        Raises `SecateurError` where the net wants `slopes` and has none.
        """
        if self.settings.gradients and not isinstance(slopes, Slopes):
            do = "give Slopes(model, batches, loss), or a net without gradients"
            raise SecateurError("scores by a Scoring Net that reads gradients", "no gradients", do)
        with torch.no_grad():
            slopes = slopes if self.settings.gradients else None
            found = self.scores(units_of(model, axes, self.settings, slopes, flows)) if axes.free else {}

        def score(axis: Axis) -> Tensor:
            if axis.name not in found:
                raise SecateurError(f"a score for axis {axis.name!r}", "no such free axis", nearest(axis.name, list(found)))
            return found[axis.name]

        return score

    def on(self, model: nn.Module, axes: Axes, batches: Batches, loss: Loss) -> Criterion:
        """The same, with what this net reads of `batches`: gradients of `loss`, activations, or nothing."""
        slopes = Slopes(model, batches, loss) if self.settings.gradients else None
        flows = Flows(model, axes, batches) if self.settings.prior == "flows" else None
        return self.criterion(model, axes, slopes, flows=flows)

    def _followed(self, units: Units) -> float:
        """How far a correction is followed: less where norms differ less than where it was learned, not at all from half on."""
        if units.bare:
            return 0.0
        return min(1.0, max(0.0, 2 * units.spread / self.settings.spread - 1)) if self.settings.spread else 1.0

    def _encoded(self, units: Units) -> Tensor:
        if self.settings.encoder == "stats":
            return torch.cat([units.stats, units.flows], 1)
        rows = []
        for members in units.sets:
            h = self.members(members)  # (N, M, 32)
            rows.append(torch.cat([h.mean(1), h.amax(1)], 1))
        return torch.cat([torch.cat(rows), units.flows], 1)

    def _seen(self, h: Tensor, units: Units) -> Tensor:
        """What the other units of the axis add to each (U, W)."""
        if self.look is not None:
            sums = h.new_zeros(len(units.sizes), h.shape[1]).index_add(0, units.owner, h)
            means = sums / torch.tensor(units.sizes, dtype=h.dtype)[:, None]
            return self.look(means)[units.owner]
        if self.attend is not None:
            parts = []
            for rows in self.attend(h).split(list(units.sizes)):
                q, k, v = (part.unsqueeze(0).unflatten(2, (4, -1)).transpose(1, 2) for part in rows.chunk(3, 1))
                parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).squeeze(0))
            return torch.cat(parts)
        return torch.zeros_like(h)
