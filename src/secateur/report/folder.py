"""A run folder as one value. What the run has not written yet is None or empty, never a guess."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.core import codec
from secateur.core.errors import SecateurError
from secateur.core.factor import Factor
from secateur.core.plan import Plan
from secateur.io import files
from secateur.report import words

FORMAT = 1
TEXTS = ("run.json", "facts.json", "plan.json", "axes.json", "history.jsonl", "recipe.toml")
WEIGHTS = ("dense.safetensors", "small.safetensors")


@dataclass(frozen=True)
class Width:
    """One axis: units before and after. `fixed` is the reason why it cannot be cut, else None."""

    name: str
    kind: str
    before: int
    after: int
    fixed: str | None = None


@dataclass(frozen=True)
class File:
    """A file of the folder: bytes on disk, and the first 16 digits of its SHA-256."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Record:
    """One run. `widths` is in forward order; `planned` says whether a plan was there to take "after" from.

    `epochs` holds one mapping per epoch in the order of training, of finite numbers and the text "phase".
    """

    folder: Path
    run: Mapping[str, Any]
    facts: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]
    widths: tuple[Width, ...]
    planned: bool
    traced: Mapping[str, Any]
    recipe: str
    files: tuple[File, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recipe as nested tables; empty where there is none or it does not parse."""
        try:
            return tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            return {}


def read(folder: str | Path) -> Record:
    """The run in `folder`.

    Raises `SecateurError` where there is no such folder or no run in it, and for a file that is damaged or of a newer
    format. A last line of history.jsonl that a killed run left half-written is passed over.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SecateurError(f"a report of {str(folder)!r}", "no such folder", "give the folder a run has written")
    if not any((folder / name).is_file() for name in TEXTS[:2]):
        found = f"neither {TEXTS[0]} nor {TEXTS[1]} in it"
        raise SecateurError(f"a report of {str(folder)!r}", found, "give the folder a run has written")
    run, traced = _table(folder / "run.json"), _table(folder / "axes.json")
    if (version := run.get("format", FORMAT)) != FORMAT:
        do = "make the report with the secateur that made the run"
        raise SecateurError(f"a report of {str(folder)!r}", f"a run of format {version!r} (this one reads {FORMAT})", do)
    planned = (folder / "plan.json").is_file()
    plan = codec.loads(_text(folder / "plan.json")) if planned else Plan({})
    sizes = tuple(_file(folder / name) for name in TEXTS + WEIGHTS if (folder / name).is_file())
    epochs, widths = _epochs(folder / "history.jsonl"), _widths(traced, plan)
    recipe = _text(folder / "recipe.toml")
    return Record(folder, run, _table(folder / "facts.json"), epochs, widths, planned, traced, recipe, sizes)


def table(value: Any) -> Mapping[str, Any]:
    """`value` where it is a table, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _text(path: Path) -> str:
    """The text of a file, "" where there is none."""
    return files.read_text(path, "run's file") if path.is_file() else ""


def _table(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file, an empty one where there is no file. NaN is let through: `words.number` drops it."""
    text = _text(path)
    try:
        value = json.loads(text) if text else {}
    except (json.JSONDecodeError, RecursionError) as error:
        raise SecateurError(f"a report with {str(path)!r}", f"no valid JSON ({error})", "run the recipe again") from None
    if not isinstance(value, dict):
        raise SecateurError(f"a report with {str(path)!r}", f"a JSON {type(value).__name__}, no table", "run the recipe again")
    return value


def _epochs(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Epochs in order; where a resumed run repeats one, the later line stands."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    rows: dict[tuple[str, Any], Mapping[str, Any]] = {}
    for place, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            if place == len(lines):
                break
            do = "mend or delete the line"
            raise SecateurError(f"a report with {str(path)!r}", f"no valid JSON in line {place}", do) from None
        if isinstance(entry, dict):
            known = {key: value for key, value in entry.items() if words.number(value) is not None}
            phase = words.clean(entry.get("phase") or "train")
            rows[phase, known.get("epoch", place)] = known | {"phase": phase}
    return tuple(rows.values())


def _widths(traced: Mapping[str, Any], plan: Plan) -> tuple[Width, ...]:
    """Axes in forward order, then those only the plan knows: ranks of products, and axes that later steps name."""
    widths, after = [], plan.widths()
    products = [product for step in plan.steps if isinstance(step, Factor) for product in step.products]
    ranks = {words.clean(f"{product.module}.{place}") for product in products for place in range(len(product.ranks))}
    axes = traced.get("axes")
    for axis in axes if isinstance(axes, list) else []:
        name, units = table(axis).get("name"), words.number(table(axis).get("units"))
        if name is None or not units or units < 1:
            continue
        reason = words.clean(axis["fixed"]) if axis.get("fixed") else None
        kept = after.get(str(name), (int(units), int(units)))[1]
        widths.append(Width(words.clean(name), words.clean(axis.get("kind") or ""), int(units), kept, reason))
    seen = {width.name for width in widths}
    widths += [
        Width(words.clean(name), "rank" if words.clean(name) in ranks else "", *pair)
        for name, pair in after.items()
        if words.clean(name) not in seen
    ]
    return tuple(widths)


def _file(path: Path) -> File:
    """Size and digest; read in pieces, weights can be large."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path.name, path.stat().st_size, digest[:16])
