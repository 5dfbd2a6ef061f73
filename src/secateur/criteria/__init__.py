"""Criteria: factories of functions from an axis to one score per unit, higher is dearer.

Make a criterion when the weights are as you want them scored, and a new one after they change.
"""

from secateur.criteria.apoz import apoz
from secateur.criteria.bn_scale import bn_scale
from secateur.criteria.cap import cap
from secateur.criteria.chip import chip
from secateur.criteria.elimination import elimination
from secateur.criteria.flows import flows
from secateur.criteria.fpgm import fpgm
from secateur.criteria.grasp import grasp
from secateur.criteria.group_fisher import group_fisher
from secateur.criteria.hrank import hrank
from secateur.criteria.isomorphic import isomorphic
from secateur.criteria.l1 import l1
from secateur.criteria.l2 import l2
from secateur.criteria.lamp import lamp
from secateur.criteria.lasso import lasso
from secateur.criteria.loss_curves import loss_curves
from secateur.criteria.nisp import nisp
from secateur.criteria.obd import obd
from secateur.criteria.per_cost import per_cost
from secateur.criteria.random import random
from secateur.criteria.rfp import rfp
from secateur.criteria.score import score
from secateur.criteria.scoring_net import scoring_net
from secateur.criteria.snip import snip
from secateur.criteria.synflow import synflow
from secateur.criteria.taylor import taylor
from secateur.criteria.thinet import thinet
from secateur.criteria.three_sp import three_sp

__all__ = [
    "apoz",
    "bn_scale",
    "cap",
    "chip",
    "elimination",
    "flows",
    "fpgm",
    "grasp",
    "group_fisher",
    "hrank",
    "isomorphic",
    "l1",
    "l2",
    "lamp",
    "lasso",
    "loss_curves",
    "nisp",
    "obd",
    "per_cost",
    "random",
    "rfp",
    "score",
    "scoring_net",
    "snip",
    "synflow",
    "taylor",
    "thinet",
    "three_sp",
]
