"""secateur: make trained neural networks smaller and faster, and prove that what was cut is what was planned.

A compression method is anything that ends in a `Plan`; a plan is the only thing that touches a model's structure.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from secateur import allocate, criteria, measure, repair
from secateur.core.axes import Axes
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError
from secateur.core.factor import Factor, Product
from secateur.core.facts import Facts
from secateur.core.mask import Mask, Support, support
from secateur.core.plan import Cut, Keep, Plan
from secateur.criteria import score
from secateur.graph import rule, trace
from secateur.io import load, read_plan, save

if TYPE_CHECKING:
    from secateur.recipes import compress
    from secateur.train import RPG, TRP

__version__ = "0.1.0"

_ON_DEMAND = {"RPG": "secateur.train", "TRP": "secateur.train", "compress": "secateur.recipes"}
_FOLDERS = ("data", "graph", "io", "lowrank", "recipes", "report", "runtime", "search", "surgery", "testing", "train")

__all__ = [
    "RPG",
    "TRP",
    "Axes",
    "Axis",
    "Cut",
    "Factor",
    "Facts",
    "Keep",
    "Mask",
    "Plan",
    "Product",
    "SecateurError",
    "Slot",
    "Support",
    "allocate",
    "compress",
    "criteria",
    "load",
    "measure",
    "read_plan",
    "repair",
    "rule",
    "save",
    "score",
    "support",
    "trace",
]


def __getattr__(name: str) -> Any:
    """What needs more imports (training, charts, recipes) arrives when it is asked for."""
    if name in _ON_DEMAND:
        return getattr(importlib.import_module(_ON_DEMAND[name]), name)
    if name in _FOLDERS:
        return importlib.import_module(f"secateur.{name}")
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")
