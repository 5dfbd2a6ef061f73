"""A grid of tickets in a folder: tickets.json is written after every seed, and the same grid goes on after the last of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches
from secateur.io.files import read_json, write_json
from secateur.measure import machine
from secateur.recipes.folder import held
from secateur.recipes.progress import Progress, silent
from secateur.recipes.schema import differing
from secateur.recipes.tickets import GridSettings, grid

NUMBERS = "tickets.json"


def carried_out(
    build: Callable[[], nn.Module],
    data: Callable[[int], tuple[Batches, Batches]],
    example: Any,
    settings: GridSettings,
    *,
    folder: Path,
    about: Mapping[str, Any],
    weights: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What tickets.json holds when the grid is done: machine, seconds, `about`, settings, and what `grid` has "found".

    `about` is what else decides the numbers, as the names of model and data. `weights`: the folder keeps what `grid` keeps of
    every seed. Where nothing could be trained no folder is left.
    Raises `SecateurError` as `grid` does, and for a folder of something else, of other settings with a seed that is done, or of
    another process.
    """
    asked = {**about, "weights": weights, "settings": asdict(settings)}
    path, begun = folder / NUMBERS, time.perf_counter()
    with held(folder, NUMBERS):
        known = (_known(path, asked, settings) if path.exists() else None) or {"seconds": 0.0, "found": None}

        def write(found: dict[str, Any]) -> None:
            seconds = round(known["seconds"] + time.perf_counter() - begun, 1)
            write_json(path, {**machine.record(), "seconds": seconds, **asked, "found": found})

        how: dict[str, Any] = {"folder": folder if weights else None, "found": known["found"]}
        grid(build, data, example, settings, on_found=write, progress=progress, **how)
        return read_json(path, "tickets")


def _known(path: Path, asked: Mapping[str, Any], settings: GridSettings) -> dict[str, Any] | None:
    """The table an earlier call has left; None where no seed is done. Raises `SecateurError` for one of other settings."""
    known, changed = read_json(path, "tickets"), []
    try:
        if not known["found"]["dense"]:
            return None
        changed = differing({key: known.get(key) for key in asked}, asked)
        if not changed and len({len(column) for column in _columns(known["found"], settings)}) == 1:
            return {"seconds": float(known["seconds"]), "found": known["found"]}
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    found = f"a grid of other settings ({', '.join(changed[:3])} differ)" if changed else f"a {path.name} of something else"
    raise SecateurError(f"run folder {str(path.parent)!r}", found, "give another folder, or delete this one to start over")


def _columns(found: Any, settings: GridSettings) -> list[Any]:
    """The accuracies of the dense network and of every ticket, one per seed that is done."""
    return [found["dense"], *(found[kind][variant] for kind in settings.kinds for variant in settings.variants)]
