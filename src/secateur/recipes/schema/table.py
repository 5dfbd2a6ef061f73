"""Recipes from TOML tables and back, and what is wrong with a table in one sentence.

pydantic checks values. Where it is missing (a borrowed machine) keys are still checked, values are not.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from secateur.core.errors import SecateurError, nearest
from secateur.io.files import read_text
from secateur.recipes import toml
from secateur.recipes.schema.kinds import QUANTITIES
from secateur.recipes.schema.recipe import Recipe
from secateur.recipes.schema.training import Stage

with suppress(ImportError):  # the recipe is then taken at its word
    from pydantic import TypeAdapter, ValidationError


def read(path: str | Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Recipe:
    """The recipe in a TOML file; "file.py:..." and relative paths that lie beside the recipe become absolute.

    `change` may alter the table that was read, before it is checked.

    Raises `SecateurError` for a missing or unreadable file, TOML that does not parse, a wrong key or a wrong value.
    """
    return from_dict(beside(plain(path, change), Path(path).absolute().parent))


def plain(path: str | Path, change: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """The table in a TOML file as it stands, altered by `change`. Raises `SecateurError` where none can be read."""
    try:
        table = tomllib.loads(read_text(Path(path), "recipe"))
    except tomllib.TOMLDecodeError as error:
        raise SecateurError(f"recipe {str(path)!r}", f"no valid TOML ({error})", "mend the file") from None
    if change:
        change(table)
    return table


def from_dict(table: Mapping[str, Any]) -> Recipe:
    """The recipe a nested table describes. Raises `SecateurError` for the first wrong key or value."""
    _known(Recipe, table, ())
    if "TypeAdapter" not in globals():
        return _trusted(Recipe, table)
    try:
        # strict JSON mode: "3" is no number and true no count, but a list may become a tuple
        return TypeAdapter(Recipe).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise _explain(error.errors()[0]) from None


def text(recipe: Recipe) -> str:
    """The recipe as TOML with every default written out; what is not set is left out."""
    return toml.dumps(asdict(recipe))


def same(a: Recipe, b: Recipe) -> list[str]:
    """Keys in which two recipes differ, the data folder aside: data may move between two halves of a run."""
    return [key for key in differing(asdict(a), asdict(b)) if key != "data.folder"]


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Keys in which two tables differ, as "section.key"."""
    one, two = _flat(a), _flat(b)
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: _plain(value)}
    return flat


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def beside(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`table` of a recipe with the files that lie beside it, in `folder`, named by absolute path."""

    def absolute(value: Any) -> Any:
        file, colon, function = value.partition(":") if isinstance(value, str) else ("", "", "")
        return f"{folder / file}{colon}{function}" if file and (folder / file).exists() else value

    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    for section, key in (
        ("model", "build"),
        ("model", "weights"),
        ("data", "name"),
        ("data", "folder"),
        ("metric", "name"),
        ("prune", "table"),
    ):
        part = found.get(section)
        if isinstance(part, dict) and key in part:
            part[key] = absolute(part[key])
    prune = found.get("prune")
    if isinstance(prune, dict) and isinstance(prune.get("args"), Mapping) and "file" in prune["args"]:
        prune["args"] = {**prune["args"], "file": absolute(prune["args"]["file"])}
    return found


def _known(kind: type, table: Any, where: tuple[str, ...]) -> None:
    """Raise `SecateurError` for a key no field has, or a section that is no table."""
    section = f"[{'.'.join(where)}]" if where else "the recipe"
    if not isinstance(table, Mapping):
        raise SecateurError(section, f"{type(table).__name__} instead of a table", f"write {section} and its keys below")
    hints = get_type_hints(kind) if where == () else {}
    names = [f.name for f in fields(kind)]
    for key, value in table.items():
        if key == "grid" and where == ():
            raise SecateurError("[grid]", "a grid of runs, which is not one run", "carry it out with `secateur grid`")
        if key not in names:
            raise SecateurError(f"key {key!r} in {section}", "no such key", nearest(str(key), names))
        if is_dataclass(hints.get(key)):
            _known(hints[key], value, (*where, key))
        for row in value if key == "stage" and where == () and isinstance(value, list) else ():
            _known(Stage, row, (key,))
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING and f.name not in table]
    if missing:
        do = 'add [model] with build = "file.py:function"' if not where else f"add {missing[0]} = ..."
        raise SecateurError(section, f"no {missing[0]!r}", do)


def _trusted(kind: type, table: Mapping[str, Any]) -> Any:
    """Dataclasses from tables without a look at the values."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        values[key] = _trusted(hints[key], value) if is_dataclass(hints[key]) else value
        if isinstance(value, list):
            values[key] = tuple(_trusted(Stage, row) if key == "stage" else row for row in value)
    return kind(**values)


def _explain(error: Mapping[str, Any]) -> SecateurError:
    """pydantic's first complaint in our three parts; what is allowed comes from the field's description."""
    path = [str(part) for part in error["loc"] if part != "[key]"]
    if "[key]" in error["loc"]:
        return SecateurError(".".join(path), "no such quantity", nearest(str(error["input"]), QUANTITIES))
    kind: Any = Recipe
    do = "give a value of the right kind"
    for depth, part in enumerate(path):
        if part.isdecimal() and get_origin(kind) is tuple:
            hint = kind = get_args(kind)[0]
        elif is_dataclass(kind):
            hint, kind = get_type_hints(kind, include_extras=True)[part], get_type_hints(kind)[part]
        elif get_origin(kind) is dict:
            hint = kind = get_args(get_args(hint)[0])[1]
        else:
            break
        do = _allowed(hint, kind, error["input"] if depth == len(path) - 1 else None) or do
    return SecateurError(f"{'.'.join(path)} = {error['input']!r}", "a value that is not allowed", do)


def _allowed(hint: Any, kind: Any, value: Any) -> str:
    """What to do about a wrong value of a field with this annotation; "" where the annotation does not say."""
    for part in (hint, *get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if getattr(extra, "description", None):
                return f"give {extra.description}"
    nested = [choice for part in get_args(kind) for choice in (get_args(part) or [part])]
    choices = [choice for choice in nested if isinstance(choice, str)]
    return nearest(str(value), choices) if choices else ""
