"""The Scoring Net: a pruning criterion that is learned, from the weights of a network to one score per unit."""

from secateur.criteria.scoring.fit import fit_
from secateur.criteria.scoring.flows import Flows
from secateur.criteria.scoring.gates import Allocate
from secateur.criteria.scoring.network import ScoringNet
from secateur.criteria.scoring.settings import NetSettings, Objective, ScorerSettings, ScorerStage
from secateur.criteria.scoring.slopes import Slopes
from secateur.criteria.scoring.task import Task
from secateur.criteria.scoring.weigh import TRUSTS, Weighed, weighed

__all__ = [
    "TRUSTS",
    "Allocate",
    "Flows",
    "NetSettings",
    "Objective",
    "ScorerSettings",
    "ScorerStage",
    "ScoringNet",
    "Slopes",
    "Task",
    "Weighed",
    "fit_",
    "weighed",
]
