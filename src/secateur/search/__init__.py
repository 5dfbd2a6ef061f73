"""Searches: generators that yield candidate plans, are sent their losses, and return what they decide."""

from secateur.search.adaptive import adaptive
from secateur.search.batched import across, processes, stacked
from secateur.search.bisect import bisect
from secateur.search.drive import Trial, drive, read_history, recorder
from secateur.search.evolution import EvolutionSettings, Evolved, evolve, gaussian
from secateur.search.inner import inner
from secateur.search.judge import previewing
from secateur.search.legr import legr
from secateur.search.predicted import PredictedSettings, additive, predicted
from secateur.search.sensitivity import sensitivity
from secateur.search.settings import AdaptiveSettings, Status

__all__ = [
    "AdaptiveSettings",
    "EvolutionSettings",
    "Evolved",
    "PredictedSettings",
    "Status",
    "Trial",
    "across",
    "adaptive",
    "additive",
    "bisect",
    "drive",
    "evolve",
    "gaussian",
    "inner",
    "legr",
    "predicted",
    "previewing",
    "processes",
    "read_history",
    "recorder",
    "sensitivity",
    "stacked",
]
