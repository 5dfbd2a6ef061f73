"""The section of a recipe that makes weights sparse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from secateur.recipes.schema.kinds import Share, Table, Words


@dataclass(frozen=True)
class Sparsity:
    """[sparse]: zeros inside weights, the share `keep` left, beside or in place of dropped units (`prune.keep`, 1 for none).

    `method` "rpg", "gmp", "granet", "rigl", "st3" and "acdc" sparsify while [finetune] or all of [[stage]] trains; "magnitude",
    "snip", "grasp", "synflow" and "obs" at once before it, and their masks stay while it trains. `args` are arguments of the
    function of that name in `secateur.train.sparse`. Those that are values of their own are tables, and what a table leaves out
    is as the method has it: rank = { strength = 0 }, growth = { drop = 0.02 }, layout = { allocation = "erk" }; the keys of
    `Layout` may also stand in `args` themselves. "snip", "grasp" and "obs" read `prune.batches` batches. `dense` are
    shell patterns of layers that stay dense.
    """

    method: Literal[
        "none", "rpg", "gmp", "granet", "rigl", "st3", "acdc", "magnitude", "snip", "grasp", "synflow", "obs"
    ] = "none"  # fmt: skip
    keep: Share = 0.1
    args: Table = field(default_factory=dict)
    dense: Words = ()
