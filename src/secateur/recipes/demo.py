"""The demo: train, compress, repair, fine-tune and measure on 1,797 handwritten digits, in about a minute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.recipes.schema import Data, Fit, LowRank, Measure, Model, Prune, Recipe, Repair, Sparsity


def recipe(seed: int = 0, threads: int = 1) -> Recipe:
    """A residual network with batch norm is cut to a third of its MACs; on one thread the run repeats bit for bit.

    Accuracy is on 359 images that neither training nor selection sees; the best epoch is chosen on 100 held-out ones.
    """
    return Recipe(
        title="Residual network on handwritten digits",
        model=Model("zoo:digits_resnet", args={"blocks": 2, "widths": [32, 64, 128]}),
        seed=seed,
        threads=threads,
        device="cpu",
        data=Data("digits", batch=64, holdout=100),
        train=Fit(epochs=18, lr=0.1, warmup=1),
        prune=Prune(keep={"macs": 1 / 3}, criterion="l2", multiple=8),
        repair=Repair(batches=20),
        finetune=Fit(epochs=8, lr=0.05),
        measure=Measure(repeats=300),
    )


def low_rank(folder: Path, seed: int = 0, threads: int = 1) -> Recipe:
    """The dense network of the demo in `folder`, trained to low rank (TRP) and taken apart at a third of its MACs.

    No fine-tuning: the products compute what the network of low rank did.
    """
    return _beside(
        folder,
        seed,
        threads,
        title="Handwritten digits, trained to low rank",
        lowrank=LowRank("trp", args={"format": "spatial", "every": 10, "nuclear": 3e-3, "project_momentum": True}),
        lowtrain=Fit(epochs=6, lr=0.05),
    )


def sparse(folder: Path, seed: int = 0, threads: int = 1) -> Recipe:
    """The dense network of the demo in `folder`, trained to a twentieth of its weights by RPG; shapes stay as they were."""
    return _beside(
        folder,
        seed,
        threads,
        title="Handwritten digits, sparse at high rank",
        prune=Prune(keep={"macs": 1.0}, criterion="l2"),
        sparse=Sparsity("rpg", keep=0.05, args={"every": 4, "end": 0.5}),
        repair=Repair("none"),
        finetune=Fit(epochs=6, lr=0.05, grad_clip=3.0),
    )


def _beside(folder: Path, seed: int, threads: int, **sections: Any) -> Recipe:
    """The demo's recipe from its trained dense network on, with other sections; it is not trained again."""
    demo = recipe(seed=seed, threads=threads)
    model = replace(demo.model, weights=str((folder / "dense.safetensors").absolute()))
    return replace(demo, **{"model": model, "train": Fit(), "finetune": Fit(), **sections})
