"""Trained rank pruning: weights are kept near low rank while a network trains, and a plan turns them into products."""

from secateur.train.trp.hold import holding
from secateur.train.trp.hook import TRP
from secateur.train.trp.settings import TRPSettings

__all__ = ["TRP", "TRPSettings", "holding"]
