"""Training: one loop nobody needs to edit, its settings, losses, evaluation and checkpoints."""

from secateur.train import sparse
from secateur.train.evaluate import evaluate
from secateur.train.loop import fit
from secateur.train.losses import cross_entropy, distillation, taught
from secateur.train.settings import FitSettings
from secateur.train.sparse import Sparse
from secateur.train.sparse import rpg as RPG
from secateur.train.trp import TRP
from secateur.train.trp_settings import TRPSettings

__all__ = [
    "RPG",
    "TRP",
    "FitSettings",
    "Sparse",
    "TRPSettings",
    "cross_entropy",
    "distillation",
    "evaluate",
    "fit",
    "sparse",
    "taught",
]
