"""Linear algebra on stacks of weights: truncation by energy and polar factors without a singular value decomposition."""

from secateur.linalg.energy import energy_rank, kept_mask
from secateur.linalg.gram import Spectrum, Truncated, follow, polar_of, spectrum, truncate
from secateur.linalg.polar import newton_schulz, polar
from secateur.linalg.stacks import Stack, stack, unstack

__all__ = [
    "Spectrum",
    "Stack",
    "Truncated",
    "energy_rank",
    "follow",
    "kept_mask",
    "newton_schulz",
    "polar",
    "polar_of",
    "spectrum",
    "stack",
    "truncate",
    "unstack",
]
