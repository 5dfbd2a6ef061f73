"""The section of a recipe that turns weights into products."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from secateur.recipes.schema.kinds import Flag, Table


@dataclass(frozen=True)
class LowRank:
    """[lowrank]: layers become products of low rank, in place of dropping units.

    `method` "trp" and "force" train the dense network, or with `scratch` a fresh one, as [lowtrain] says, under `secateur.TRP`
    (`preset`, `args` its settings) or `train.Force` (`args` its arguments), and read off ranks. "choose" needs no training:
    formats and ranks are those of `lowrank.choose` (`args` its arguments; `responses` weighs by what layers answer on
    `prune.batches` batches, not by weights alone); with [lowtrain] the network then trains at these ranks, from products
    fitted to the responses (`train.holding`). Ranks keep `prune.keep`, unless `deploy` says
    otherwise: as in `TRP.plan`, or { latency = 0.5 } for "choose". [repair] "whitened" fits values to what flows through.
    """

    method: Literal["none", "trp", "force", "choose"] = "none"
    preset: Literal["paper", "code"] = "paper"
    args: Table = field(default_factory=dict)
    deploy: Table = field(default_factory=dict)
    scratch: Flag = False
    responses: Flag = True
