"""The grid of lottery tickets: every reinitialisation, structured and unstructured, over seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import allocate, criteria
from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Plan, mask
from secateur.core.protocols import Batches
from secateur.criteria.score import score
from secateur.graph import trace
from secateur.io import artefact
from secateur.recipes.progress import Progress, silent
from secateur.surgery import fingerprint
from secateur.train import FitSettings, evaluate, fit
from secateur.train.tickets import VARIANTS, ZerosStay, ticket

LATE = "late rewind"
KINDS = ("structured", "unstructured")
FRESH = 1_000_003
"""Added to a seed for the second draw of initial weights."""


@dataclass(frozen=True)
class GridSettings:
    """`keep`: the share of units (structured, by L1 in every layer) or of weights (unstructured, by size in every layer).

    `fit` trains the dense network and every ticket alike; "late rewind" takes the dense network's weights after `late` epochs.
    """

    variants: tuple[str, ...] = ("rewind", LATE, *list(VARIANTS)[1:])
    kinds: tuple[str, ...] = KINDS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    keep: float = 0.2
    late: int = 1
    fit: FitSettings = field(default_factory=lambda: FitSettings(epochs=5, lr=0.1))

    def __post_init__(self) -> None:
        for name, known in (("variants", (*VARIANTS, LATE)), ("kinds", KINDS)):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))  # a word said twice is one row
            for word in getattr(self, name):
                if word not in known:
                    raise SecateurError(f"{name}: {word!r}", "no such choice", nearest(word, known))
        if not 0 < self.keep < 1:
            raise SecateurError(f"keep={self.keep}", "no share", "give what remains, as a share between 0 and 1")
        if not self.seeds or not self.variants or not self.kinds:
            raise SecateurError("a grid of tickets", "nothing to run", "give at least one seed, one variant and one kind")
        if not 0 < self.late <= self.fit.epochs:
            found = f"{self.fit.epochs} epochs of training"
            raise SecateurError(f"late={self.late}", found, "rewind to an epoch that is trained")


def grid(
    build: Callable[[], nn.Module],
    data: Callable[[int], tuple[Batches, Batches]],
    example: Any,
    settings: GridSettings | None = None,
    *,
    folder: Path | None = None,
    found: dict[str, Any] | None = None,
    on_found: Callable[[dict[str, Any]], None] = lambda found: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """{"dense": accuracies, kind: {variant: accuracies}}, one accuracy per seed, on the second part of ``data(seed)``.

    For each seed: two networks with independent initial weights, of which one is trained; a plan from its trained weights; for
    every variant a ticket made by that plan from the initial weights, trained as the dense network was. No choice looks at the
    data accuracies are on.

    `folder` keeps what the tickets of each seed are made from, in "seed-0" and so on: the weights "initial", "fresh" (the
    second draw), "late" and "dense" as safetensors, and a plan per kind, as structured.json. `secateur.train.ticket` makes
    the tickets again.

    `found` is what an earlier call was stopped at: seeds in it are done. ``on_found(found)`` is told what there is before the
    first file of a seed is written, and after every seed.

    Raises `SecateurError` before anything is trained where no ticket can be smaller than the network.
    """
    settings = settings or GridSettings()
    _require_cut(_built(build, settings.seeds[0]), example, settings.kinds)
    found = found or {"dense": []} | {kind: {variant: [] for variant in settings.variants} for kind in settings.kinds}
    each = 1 + len(settings.kinds) * len(settings.variants)
    done, total = each * len(found["dense"]), each * len(settings.seeds)
    for seed in settings.seeds[len(found["dense"]) :]:
        train, test = data(seed)
        how = replace(settings.fit, seed=seed)
        initial, fresh = _built(build, seed), _built(build, seed + FRESH)
        dense, late = _dense(initial, train, how, settings.late)
        accuracy, rows = evaluate(dense, test)["accuracy"], dict[tuple[str, str], float]()
        on_found(found)
        place = folder / f"seed-{seed}" if folder else None
        if place:
            _keep(place, {"initial": initial, "fresh": fresh, "late": late, "dense": dense})
        done += 1
        for kind in settings.kinds:
            plan = structured(dense, example, settings.keep) if kind == "structured" else unstructured(dense, settings.keep)
            if place:
                artefact.write_plan(place / f"{kind}.json", plan)
            for variant in settings.variants:
                progress("tickets", done, total, f"seed {seed}, {kind}, {variant}")
                source, draw = (late, "rewind") if variant == LATE else (initial, variant)
                small = ticket(source, fresh, plan, draw, seed=seed)
                fit(small, train, how, hooks=[ZerosStay(small, plan)] if kind == "unstructured" else [])
                rows[kind, variant] = evaluate(small, test)["accuracy"]
                done += 1
        found["dense"].append(accuracy)
        for (kind, variant), value in rows.items():
            found[kind][variant].append(value)
        on_found(found)
    progress("tickets", total, total, "")
    return found


def _require_cut(model: nn.Module, example: Any, kinds: Sequence[str]) -> None:
    """Raise `SecateurError` for a kind of tickets that this network has none of."""
    if "structured" in kinds and not trace(model, example).free:
        do = "give a network of which something can go, or take unstructured tickets alone"
        raise SecateurError("structured tickets", "no axis that can be cut", do)
    if "unstructured" in kinds and not any(p.dim() > 1 for p in model.parameters()):
        raise SecateurError("unstructured tickets", "no parameter of two dims or more", "give a network that has weights")


def _keep(place: Path, models: dict[str, nn.Module]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        artefact.save(place / f"{name}.safetensors", model)


def structured(model: nn.Module, example: Any, keep: float) -> Plan:
    """The plan that keeps the units of largest L1 norm, the same share of every axis."""
    axes = trace(model, example)
    return allocate.uniform(axes, score(axes, criteria.l1(model, group=False)), keep)


def unstructured(model: nn.Module, keep: float) -> Plan:
    """The plan that keeps the largest weights, the same share of every tensor of two dims and more.

    Zhou et al., 2019: the criterion "large_final", in one round.
    """
    shapes = fingerprint(model)
    return mask(shapes, {name: _largest(p.detach(), keep) for name, p in model.named_parameters() if p.dim() > 1})


def _largest(weight: Tensor, keep: float) -> Tensor:
    count = max(1, round(keep * weight.numel()))
    order = weight.abs().flatten().argsort(descending=True, stable=True)[:count]
    return torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, order, True).reshape(weight.shape)


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _dense(initial: nn.Module, train: Batches, how: FitSettings, late: int) -> tuple[nn.Module, nn.Module]:
    """The trained network, and a copy of it after `late` epochs."""
    model = copy.deepcopy(initial)
    held: list[nn.Module] = []

    def look(record: dict[str, Any]) -> None:
        if record["epoch"] == late:
            held.append(copy.deepcopy(model))

    fit(model, train, how, on_epoch=look)
    return model, held[0]
