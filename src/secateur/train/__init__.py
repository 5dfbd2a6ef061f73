"""Training: one loop nobody needs to edit, its settings, losses, evaluation, checkpoints, and hooks that act in it."""

from secateur.train import sparse
from secateur.train.callbacks import lightning_callback, trainer_callback
from secateur.train.compactor import Compactors, CompactorSettings
from secateur.train.evaluate import evaluate
from secateur.train.force import Force
from secateur.train.growing import GrowingPenalty, GrowingSettings
from secateur.train.loop import fit
from secateur.train.losses import cross_entropy, distillation, taught
from secateur.train.objectives import FeatureMatching, objective
from secateur.train.settings import FitSettings
from secateur.train.slimming import Slimming
from secateur.train.soft import SoftPruning
from secateur.train.sparse import Sparse
from secateur.train.sparse import rpg as RPG
from secateur.train.stages import Stage, fit_stages
from secateur.train.tickets import ticket
from secateur.train.trp import TRP, TRPSettings, holding

__all__ = [
    "RPG",
    "TRP",
    "CompactorSettings",
    "Compactors",
    "FeatureMatching",
    "FitSettings",
    "Force",
    "GrowingPenalty",
    "GrowingSettings",
    "Slimming",
    "SoftPruning",
    "Sparse",
    "Stage",
    "TRPSettings",
    "cross_entropy",
    "distillation",
    "evaluate",
    "fit",
    "fit_stages",
    "holding",
    "lightning_callback",
    "objective",
    "sparse",
    "taught",
    "ticket",
    "trainer_callback",
]
