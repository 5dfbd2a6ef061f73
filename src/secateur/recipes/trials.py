"""The trials of a search on disk: written as they are judged, read again where it goes on, shared out among processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import JudgeMany
from secateur.io.files import read_json, write_json
from secateur.recipes.judging import Counted
from secateur.recipes.schema import Recipe
from secateur.recipes.schema.table import differing
from secateur.search import Trial, across, drive, processes, read_history, recorder

Result = TypeVar("Result")
JUDGES = ("metric", "images", "repair", "batches", "select_on", "recover", "recover_lr")
"""What of [search] changes the loss of a plan; all else changes which plans are tried, and those the history names."""


def driven(
    search: Generator[Any, Any, Result],
    judge: Counted,
    folder: Path | None,
    stack: JudgeMany | None,
    judged_by: Mapping[str, Any],
) -> Result:
    """What the search returns; its history in `folder`, and its trials shared out among processes where there are several.

    The losses of a history hold for the judge that gave them: `judged_by` is written to search.json with the first trial.
    Raises `SecateurError` where that of the trials in `folder` differs.
    """
    with processes() as (rank, world):
        many = judge.counting(across(judge) if world > 1 else stack)
        if folder is None:
            return drive(search, judge, many=many)
        path = folder / "search.jsonl"
        history = read_history(path)
        if history:
            _require_same(folder, judged_by)
        if world > 1:
            dist.barrier()  # the first process rewrites the file others still read
        record = None if rank else _first_made(path, judged_by, new=not history)
        return drive(search, judge, history=history, record=record, many=many)


def judge_facts(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Whatever the loss of a plan for `model` depends on, as JSON has it; the weights as a digest."""
    table = asdict(recipe)
    data = {key: str(value) for key, value in table["data"].items() if key != "folder"}  # data may move
    section = {key: table["search"][key] for key in JUDGES}
    if recipe.search.method != "adaptive" or not recipe.search.recover:
        section = {key: value for key, value in section.items() if not key.startswith("recover")}
    known = {"seed": recipe.seed, "loss": recipe.loss, "metric": table["metric"], "data": data, "search": section}
    return {"model": {"build": recipe.model.build, "weights": _digest(model)}, **known}


def _digest(model: nn.Module) -> str:
    """A name for the values of all tensors of a model."""
    found = sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + raw.numpy().tobytes())
    return found.hexdigest()[:16]


def _require_same(folder: Path, judged_by: Mapping[str, Any]) -> None:
    """Raises `SecateurError` for a history of another judge; one without its facts, of an older version, is believed."""
    path = folder / "search.json"
    known = read_json(path, "facts of a search") if path.exists() else judged_by
    if changed := differing(known, judged_by) if isinstance(known, dict) else ["all"]:
        found = f"trials of another judge in it ({', '.join(changed[:3])} differ)"
        raise SecateurError(f"a search in {str(folder)!r}", found, "give another folder, or delete this one to start anew")


def _first_made(path: Path, judged_by: Mapping[str, Any], *, new: bool) -> Callable[[Trial], None]:
    """A `recorder` of `path` that is made, with its folder, when there is a trial to record."""
    made: list[Callable[[Trial], None]] = []

    def record(trial: Trial) -> None:
        if not made:
            path.parent.mkdir(parents=True, exist_ok=True)
            if new:
                write_json(path.with_suffix(".json"), judged_by)
            made.append(recorder(path))
        made[0](trial)

    return record
