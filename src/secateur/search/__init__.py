"""Searches: generators that yield candidate plans, are sent their losses, and return what they decide."""

from secateur.search.adaptive import AdaptiveSettings, Status, adaptive
from secateur.search.bisect import bisect
from secateur.search.drive import Trial, drive, read_history, recorder
from secateur.search.judge import previewing
from secateur.search.sensitivity import sensitivity

__all__ = [
    "AdaptiveSettings",
    "Status",
    "Trial",
    "adaptive",
    "bisect",
    "drive",
    "previewing",
    "read_history",
    "recorder",
    "sensitivity",
]
