"""What units carry, in activations: of the outputs of their readers, and of those of the network, per MAC."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Criterion
from secateur.criteria.scoring.flows import Flows
from secateur.criteria.scoring.settings import NetSettings
from secateur.criteria.scoring.units import units_of


def flows(model: nn.Module, axes: Axes, batches: Batches, *, limit: int = 20, sample: int = 128) -> Criterion:
    """Scores (N,): what is lost with a unit in greedy removal, over what it costs; they compare across axes.

    The geometric mean of what is lost in the readers (1 - r^2 of the sum over the units that are left with the sum over all)
    and at the outputs (squared sums of first-order changes), over the axis' share of the MACs, all to one power. What batch
    norms find anew after a cut, means and scales, does not count. `scoring.Flows` says what is measured on at most `limit` of
    `batches`, in which labels are not read; `sample` rows of each layer are. Axes that nothing reads are scored by relative
    L1 norms.

    Ours; the removal is that of ThiNet (Luo et al., 2017, algorithm 1) by correlation. It is what a Scoring Net of
    ``prior="flows"`` corrects. Raises `SecateurError` for an axis the criterion was not made with.
    """
    units = units_of(model, axes, NetSettings(prior="flows"), flows=Flows(model, axes, batches, limit=limit, sample=sample))
    known = dict(zip(units.names, units.prior.double().exp().split(list(units.sizes)), strict=True))

    def score(axis: Axis) -> Tensor:
        if axis.name not in known:
            do = "make the criterion with the axes you score"
            raise SecateurError(f"flows of axis {axis.name!r}", "no such axis among those it was made with", do)
        return known[axis.name]

    return score
