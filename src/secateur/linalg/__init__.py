"""Linear algebra on stacks of weights: truncation by energy and polar factors without a singular value decomposition."""

from secateur.linalg.energy import energy_rank, kept_mask
from secateur.linalg.gram import Spectrum, Truncated, follow, polar_of, spectrum, truncate
from secateur.linalg.polar import newton_schulz, polar
from secateur.linalg.stacks import Stack, stack, unstack
from secateur.linalg.tail import Subspace, normalised, repulsion, tail_mask, tail_space
from secateur.linalg.whiten import Whitened, least_squares, patch_covariance, responses, through

__all__ = [
    "Spectrum",
    "Stack",
    "Subspace",
    "Truncated",
    "Whitened",
    "energy_rank",
    "follow",
    "kept_mask",
    "least_squares",
    "newton_schulz",
    "normalised",
    "patch_covariance",
    "polar",
    "polar_of",
    "repulsion",
    "responses",
    "spectrum",
    "stack",
    "tail_mask",
    "tail_space",
    "through",
    "truncate",
    "unstack",
]
