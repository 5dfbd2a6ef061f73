"""Rows of the demo for the published systems of channel pruning: its dense network to half of its MACs, hardly trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import allocate, criteria
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.score import score
from secateur.criteria.scoring import ScorerSettings, ScorerStage
from secateur.graph import trace
from secateur.io import artefact
from secateur.measure import facts
from secateur.recipes.demo import recipe
from secateur.recipes.parts import Parts, limited, parts
from secateur.recipes.progress import Progress, silent
from secateur.recipes.reconstruct import channel_pruning, repair_by_name
from secateur.repair import batchnorm
from secateur.search import AdaptiveSettings, adaptive, drive, previewing
from secateur.train import FitSettings, fit

KEEP = 0.5
SAMPLE = 1024


@dataclass(frozen=True, eq=False)
class Setting:
    """What every system is given: the dense network, its axes, calibration batches and the rest of the run's parts."""

    model: nn.Module
    axes: Axes
    batches: list[tuple[Any, Any]]
    parts: Parts
    seed: int


def rows(folder: Path, seed: int = 0, threads: int = 1, *, progress: Progress = silent) -> list[dict[str, Any]]:
    """One row of facts per system, for the dense network of the demo in `folder`; the first row is that network.

    Choices are made on training and held-out images; accuracy is on the test images. Nothing is trained, but for two epochs
    of the network divided over workers.
    """
    how = recipe(seed=seed, threads=threads)
    known = parts(how, torch.device("cpu"))
    model = artefact.load(folder / "dense.safetensors", into=known.model()).eval()
    setting = Setting(model, trace(model, known.example), limited(known.plain, 4, known.device), known, seed)
    found = [("dense", model)]
    for number, (name, system) in enumerate(SYSTEMS.items()):
        progress("channel pruning", number, len(SYSTEMS), name)
        found.append((name, system(setting)))
    progress("channel pruning", len(SYSTEMS), len(SYSTEMS), "")
    return [
        {"stage": name} | facts(small, known.example).to_json() | {"accuracy": known.judge(small, known.test)["accuracy"]}
        for name, small in found
    ]


def filters(setting: Setting) -> nn.Module:
    """L1 norms of filters at one rate for all layers (Li et al., 2017)."""
    scores = score(setting.axes, criteria.l1(setting.model, group=False))
    return _repaired(setting, allocate.uniform(setting.axes, scores, {"macs": KEEP}), "batchnorm")


def searched(setting: Setting) -> nn.Module:
    """Rates by trials on held-out images (adaptive adjustment, 2023)."""
    held = setting.parts.holdout
    assert held is not None
    judge = previewing(
        setting.model,
        lambda trial: setting.parts.judge(trial, held)["loss"],
        lambda trial: batchnorm(setting.model, trial, setting.batches[:2]),
    )
    scores = score(setting.axes, criteria.l1(setting.model, group=False))
    settings = AdaptiveSettings(step=0.15, trial=0.15, running=2.0, keep={"macs": KEEP}, order="backward")
    return _repaired(setting, drive(adaptive(setting.axes, scores, settings), judge), "batchnorm")


def lasso(setting: Setting) -> nn.Module:
    """LASSO selection and least squares, layer by layer (He et al., 2017), at the widths of one rate for all layers."""
    plan = allocate.uniform(setting.axes, score(setting.axes, criteria.l2(setting.model)), {"macs": KEEP})
    widths = {name: after for name, (_, after) in plan.widths().items()}
    _, small = channel_pruning(setting.model, setting.axes, widths, setting.batches, sample=SAMPLE)
    return small.eval()


def compensated(setting: Setting) -> nn.Module:
    """Greedy selection by explained variance, and compensation (CaP, 2021)."""
    scores = score(
        setting.axes, criteria.cap(setting.model, setting.batches, sample=SAMPLE, default=criteria.l2(setting.model))
    )
    plan = allocate.budget(setting.axes, scores, {"macs": KEEP}, normalise="none")
    return _repaired(setting, plan, "compensation")


def learned(setting: Setting) -> nn.Module:
    """Scores by a Scoring Net, trained on the frozen network through gates (2023)."""

    def ranked(axes: Axes, scores: Mapping[str, Tensor], share: float) -> Plan:
        return allocate.budget(axes, scores, {"macs": share}, normalise="none")

    how = ScorerSettings(stages=(ScorerStage(epochs=4, lr=0.01),), keeps=(KEEP,), limit=16, seed=setting.seed)
    criterion = criteria.scoring_net(
        setting.model, setting.parts.plain, setting.parts.loss, axes=setting.axes, allocate=ranked, settings=how
    )
    return _repaired(setting, ranked(setting.axes, score(setting.axes, criterion), KEEP), "batchnorm")


def divided(setting: Setting) -> nn.Module:
    """Blocks for two workers that need nothing of each other (Partition Pruning, 2019), fine-tuned for two epochs."""
    small = allocate.partition(setting.model, setting.axes, 2, kernels=True).apply(setting.model)
    fit(small, setting.parts.train, FitSettings(2, lr=0.05, seed=setting.seed))
    return small.eval()


SYSTEMS: dict[str, Callable[[Setting], nn.Module]] = {
    "filter norms (PFEC)": filters,
    "adaptive rate": searched,
    "LASSO, least squares": lasso,
    "compensation (CaP)": compensated,
    "Scoring Net": learned,
    "two workers, 2 epochs": divided,
}


def _repaired(setting: Setting, plan: Plan, name: str) -> nn.Module:
    small = plan.apply(setting.model)
    repair_by_name(name, plan, sample=SAMPLE)(setting.model, small, setting.batches)
    return small.eval()
