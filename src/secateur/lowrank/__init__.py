"""Formats and ranks of products, chosen layer by layer under a budget on multiply-accumulates, parameters or measured time."""

from secateur.lowrank.choose import choose
from secateur.lowrank.knapsack import knapsack
from secateur.lowrank.merge import merge_
from secateur.lowrank.offers import offers
from secateur.lowrank.places import Place, places

__all__ = ["Place", "choose", "knapsack", "merge_", "offers", "places"]
