"""Sparse training and sparse weights: masks on a schedule, scores of entries, one-shot and iterative pruning."""

from secateur.train.sparse.hook import Growth, Sparse
from secateur.train.sparse.lottery import iterative
from secateur.train.sparse.methods import RPG_PUBLISHED, acdc, fixed, gmp, granet, rank_of, rigl, rpg, st3
from secateur.train.sparse.obs import obs
from secateur.train.sparse.ramp import Ramp
from secateur.train.sparse.rank import Rank
from secateur.train.sparse.saliency import grasp, magnitude, one_shot, snip, synflow
from secateur.train.sparse.select import Layout
from secateur.train.sparse.weights import weights_of

__all__ = [
    "RPG_PUBLISHED",
    "Growth",
    "Layout",
    "Ramp",
    "Rank",
    "Sparse",
    "acdc",
    "fixed",
    "gmp",
    "granet",
    "grasp",
    "iterative",
    "magnitude",
    "obs",
    "one_shot",
    "rank_of",
    "rigl",
    "rpg",
    "snip",
    "st3",
    "synflow",
    "weights_of",
]
