"""Linear algebra on stacks of weights: truncation by energy and polar factors without a singular value decomposition."""

from secateur.linalg.energy import energy_rank, kept_mask
from secateur.linalg.gram import Spectrum, polar_of, spectrum, truncate
from secateur.linalg.polar import newton_schulz, polar
from secateur.linalg.stacks import Stack, stack, unstack
from secateur.linalg.tail import normalised, repulsion, tail_basis, tail_mask

__all__ = [
    "Spectrum",
    "Stack",
    "energy_rank",
    "kept_mask",
    "newton_schulz",
    "normalised",
    "polar",
    "polar_of",
    "repulsion",
    "spectrum",
    "stack",
    "tail_basis",
    "tail_mask",
    "truncate",
    "unstack",
]
