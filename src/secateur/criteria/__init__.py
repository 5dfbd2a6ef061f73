"""Criteria: factories of functions from an axis to one score per unit, higher is dearer.

Make a criterion when the weights are as you want them scored, and a new one after they change.
"""

from secateur.criteria.bn_scale import bn_scale
from secateur.criteria.fpgm import fpgm
from secateur.criteria.l1 import l1
from secateur.criteria.l2 import l2
from secateur.criteria.random import random
from secateur.criteria.score import score
from secateur.criteria.taylor import taylor

__all__ = ["bn_scale", "fpgm", "l1", "l2", "random", "score", "taylor"]
