"""Training: one loop nobody needs to edit, its settings, losses, evaluation and checkpoints."""

from secateur.train.evaluate import evaluate
from secateur.train.loop import fit
from secateur.train.losses import cross_entropy, distillation, taught
from secateur.train.settings import FitSettings

__all__ = ["FitSettings", "cross_entropy", "distillation", "evaluate", "fit", "taught"]
