"""Lottery tickets of the demo: one seed of a smaller network, a few reinitialisations."""

from __future__ import annotations

from typing import Any

import torch

from secateur.recipes import zoo
from secateur.recipes.demo import recipe
from secateur.recipes.parts import load_data
from secateur.recipes.progress import Progress, silent
from secateur.recipes.tickets import GridSettings, grid
from secateur.train import FitSettings

VARIANTS = ("rewind", "sign", "distribution", "absolute", "random")


def tickets(seed: int = 0, *, progress: Progress = silent) -> dict[str, Any]:
    """What `recipes.tickets.grid` finds for `seed`: a fifth of the units, or of the weights, trained for three epochs."""
    train, _, _, test = load_data(recipe(seed=seed), torch.device("cpu"))
    settings = GridSettings(VARIANTS, seeds=(seed,), keep=0.2, fit=FitSettings(epochs=3, lr=0.1))
    return grid(zoo.digits_resnet, lambda _: (train, test), torch.zeros(1, 1, 8, 8), settings, progress=progress)
