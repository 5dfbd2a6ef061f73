"""A recipe carried out in a folder: phase after phase, and again from where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from secateur.core.errors import SecateurError
from secateur.io.files import read_json, write_json
from secateur.recipes import folder as files
from secateur.recipes import schema
from secateur.recipes.choose import require_normalise, require_reselect
from secateur.recipes.lowering import require_lowrank
from secateur.recipes.parts import parts
from secateur.recipes.phases import PHASES, Job
from secateur.recipes.progress import Progress, silent
from secateur.recipes.schema import Recipe, trained
from secateur.recipes.scoring import net_or_settings
from secateur.recipes.searching import require_search
from secateur.recipes.tune import settings_of
from secateur.train.stages import told_apart


def run(
    recipe: Recipe | str | Path,
    folder: str | Path,
    *,
    data: str | None = None,
    progress: Progress | None = None,
    report: Callable[[Path], Path] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The facts of the finished run, as in facts.json; `folder` holds all of it.

    A run that was stopped goes on: finished phases are not repeated, training goes on from its last whole epoch. From
    the same seed it ends in the same plan, and on one thread in the same weights, bit for bit. `data` replaces the
    recipe's data folder; SECATEUR_DATA stands in where neither names one. `report` makes the page from the folder.
    Raises `SecateurError` for whatever the recipe asks that cannot be had, and where another process has the folder.
    """
    recipe = recipe if isinstance(recipe, Recipe) else schema.read(recipe)
    data = data or recipe.data.folder or os.environ.get("SECATEUR_DATA")
    recipe = replace(recipe, data=replace(recipe.data, folder=data))
    folder, progress = Path(folder), progress or silent
    device = files.device(recipe.device)
    check(recipe)
    files.prepare(folder)
    with files.alone(folder), threads(recipe.threads):
        state = files.create(folder, recipe, command)
        if any(phase not in state["phases"] for phase in PHASES):
            _phases(Job(folder, recipe, parts(recipe, device), progress, data), state)
        if report and not (state["finished"] and (folder / "report.html").exists()):
            _finish(folder, state)
            report(folder)
        elif not state["finished"]:
            _finish(folder, state)
        files.tidy(folder)
        return read_json(folder / "facts.json", "facts")


def check(recipe: Recipe) -> None:
    """Raise `SecateurError` now for wrong words that a phase would only come upon after others."""
    if recipe.stage and recipe.finetune.epochs:
        raise SecateurError("a recipe", "[finetune] with epochs beside [[stage]]", "write the fine-tuning as one more stage")
    told_apart([trained(stage, recipe.seed) for stage in recipe.stage])
    require_normalise(recipe.prune)
    require_reselect(recipe.prune)
    if recipe.prune.reselect != "none" and (other := _other(recipe)):
        found = f"[{other}], which makes the plan"
        raise SecateurError(f"prune.reselect = {recipe.prune.reselect!r}", found, "leave one of them out")
    if recipe.prune.criterion == "scoring_net":
        net_or_settings(recipe.prune.args, 1.0, recipe.seed)
    for section in (recipe.train, recipe.lowtrain, recipe.finetune):
        settings_of(section, recipe.seed)
    require_search(recipe)
    require_lowrank(recipe)


def _other(recipe: Recipe) -> str:
    """The section that makes the plan in place of [prune]; none is ""."""
    return "search" if recipe.search.method != "none" else "lowrank" if recipe.lowrank.method != "none" else ""


def _phases(job: Job, state: dict[str, Any]) -> None:
    """Do what is not marked as done, in order; every phase draws from its own seed, so that a resumed run draws the same."""
    for number, (name, phase) in enumerate(PHASES.items()):
        if name not in state["phases"]:
            begun = time.perf_counter()
            torch.manual_seed(job.recipe.seed + number)
            phase(job)
            files.mark(job.folder, state, name, time.perf_counter() - begun)


def _finish(folder: Path, state: dict[str, Any]) -> None:
    state["finished"] = state["finished"] or files.now()
    write_json(folder / "run.json", state)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run on `count` threads, 0 for as many as torch has, and go back afterwards."""
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
