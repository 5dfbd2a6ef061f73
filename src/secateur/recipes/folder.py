"""The run folder: what is written where, every file whole or not there, so that a run killed at any moment goes on.

A phase writes its files first and is marked in run.json last; an unmarked phase is done again from the start, except
that training goes on from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from secateur.core.errors import SecateurError
from secateur.io.files import read_json, write_json, write_text
from secateur.measure import machine
from secateur.recipes import schema
from secateur.recipes.schema import Recipe

FORMAT = 1


def prepare(folder: Path, mark: str = "recipe.toml") -> None:
    """Make `folder` where there is none. Raises `SecateurError` where it cannot be, or holds other files and no `mark`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        found, do = error.strerror or str(error), "give a folder that can be written"
        raise SecateurError(f"run folder {str(folder)!r}", found, do) from None
    if foreign and not (folder / mark).exists():
        found = f"other files ({', '.join(sorted(foreign)[:3])}) and no {mark}"
        raise SecateurError(f"run folder {str(folder)!r}", found, "give a new or an empty folder")


def create(folder: Path, recipe: Recipe, command: str) -> dict[str, Any]:
    """The contents of run.json: of the run that was begun here, or of a new one.

    Where nothing was finished yet, another recipe may take over. Raises `SecateurError` where something was.
    """
    known, state_path = folder / "recipe.toml", folder / "run.json"
    state = read_json(state_path, "run state") if state_path.exists() else None
    if state and (state["phases"] or any(folder.glob("work/*.checkpoint"))):
        changed = schema.same(schema.read(known), recipe)
        if changed:
            do = "give another folder, or delete this one to start over"
            raise SecateurError(f"run folder {str(folder)!r}", f"a run of another recipe ({', '.join(changed[:3])} differ)", do)
        return state
    write_text(known, schema.text(recipe))
    return _begin(folder, recipe, command)


def _begin(folder: Path, recipe: Recipe, command: str) -> dict[str, Any]:
    state = {
        "format": FORMAT,
        "command": command,
        "title": recipe.title or folder.name,
        "model": recipe.model.build,
        "data": recipe.data.name,
        "seed": recipe.seed,
        "started": now(),
        "finished": None,
        "seconds": 0.0,
        "versions": machine.versions(),
        "hardware": machine.hardware(device(recipe.device), recipe.threads),
        "phases": {},
    }
    write_json(folder / "run.json", state)
    return state


def mark(folder: Path, state: dict[str, Any], phase: str, seconds: float) -> None:
    """Write into run.json that `phase` is done and took `seconds` (of the attempt that finished it)."""
    state["phases"][phase] = {"seconds": round(seconds, 3)}
    state["seconds"] = round(sum(entry["seconds"] for entry in state["phases"].values()), 3)
    write_json(folder / "run.json", state)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder: a second process that runs in it is refused. The system lets go when a process dies."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: two runs in one folder are then the user's care
        yield
        return
    with open(folder / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            do = "wait for it, or give another folder"
            raise SecateurError(f"run folder {str(folder)!r}", "another process at work in it", do) from None
        yield


@contextmanager
def held(folder: Path, mark: str) -> Iterator[None]:
    """`prepare`, then `alone`; a folder that is made here goes again where nothing came of it."""
    new = not folder.exists()
    prepare(folder, mark)
    try:
        with alone(folder):
            yield
    finally:
        if new and all(path.name == ".lock" for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def write_history(folder: Path, phase: str, records: list[dict[str, Any]]) -> None:
    """Put the epochs of `phase` into history.jsonl: they and all later ones of that phase replace what was there."""
    first = records[0]["epoch"] if records else 0
    kept = [known for known in read_history(folder) if known["phase"] != phase or known["epoch"] < first]
    lines = [json.dumps(record) for record in [*kept, *({"phase": phase, **record} for record in records)]]
    write_text(folder / "history.jsonl", "".join(line + "\n" for line in lines))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """One dict per epoch, in order; empty before any training."""
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def tidy(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree(folder / "work", ignore_errors=True)


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def device(name: str) -> torch.device:
    """The device a recipe names; "auto" is CUDA where there is one. Raises `SecateurError` where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name.startswith("cuda") and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise SecateurError(f"device {name!r}", "no such device", 'give device = "cpu" or "auto"')
    return torch.device(name)
