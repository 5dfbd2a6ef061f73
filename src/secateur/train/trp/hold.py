"""Low rank that is chosen first and kept while a network trains.

Shape legend: none.
"""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from secateur.core.errors import SecateurError
from secateur.core.factor import Factor
from secateur.core.plan import Plan
from secateur.train.trp.hook import TRP
from secateur.train.trp.layers import layers_of
from secateur.train.trp.settings import TRPSettings

HELD = ("channel", "spatial", "linear")
"""Formats of one matrix per layer, whose rank a truncation keeps."""


def holding(model: nn.Module, plan: Plan, *, optimizer: optim.Optimizer | None = None, **changes: Any) -> tuple[TRP, ...]:
    """Hooks that keep `model` at the ranks of `plan`, one for each format in it: to be given to `fit` together.

    Every step ends in a truncation, and momentum loses what leaves the matrices (`project_momentum`), so that the plan takes
    the trained network apart without loss. Where products were fitted to data, `lowrank.merge_` makes them the start;
    `changes` are further settings, as `descent`. Making the hooks truncates the weights of `model` in place.

    Raises `SecateurError` for a plan that is not one factor step, and for products that are more than one matrix per layer,
    of grouped convolutions, of shared weights or of subclasses.
    """
    asked = "ranks held while a network trains"
    if len(plan.steps) != 1 or not isinstance(plan.steps[0], Factor):
        raise SecateurError(asked, "a plan that is not one factor step", "give one of lowrank.choose, or of TRP")
    for name in ("format", "ranks", "ignore"):
        if name in changes:
            raise SecateurError(f"{asked}, with {name}={changes[name]!r}", "that the plan says so already", "leave it out")
    plan.check(model)
    ranks: dict[str, dict[str, int]] = {}
    able = {layer.name for layer in layers_of(model, TRPSettings(stem=True, linear=True))}
    for product in plan.steps[0].products:
        if product.format not in HELD:
            found = f"the format {product.format!r} of {product.module!r}, which is more than one matrix"
            raise SecateurError(asked, found, f"choose formats among {', '.join(HELD)}")
        if product.module not in able:
            found = f"{product.module!r}, which has groups, shares its weight or is of a class of its own"
            raise SecateurError(asked, found, "leave it out of the plan, as by ignore=[...]")
        ranks.setdefault(product.format, {})[product.module] = product.ranks[0]
    settings: dict[str, Any] = {"energy": 1.0, "every": 1, "nuclear": 0.0, "project_momentum": True, "stem": True} | changes
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return tuple(
        TRP(
            model,
            optimizer=optimizer,
            ignore=[name for name in names if name not in mine],
            ranks=mine,
            **settings | ({"linear": True} if kind == "linear" else {"format": kind}),
        )
        for kind, mine in ranks.items()
    )
