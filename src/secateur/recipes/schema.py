"""The recipe: one frozen value that says everything a run does, read from TOML with the names of the Python arguments.

pydantic checks it on reading. Where pydantic is missing (a borrowed machine) keys are still checked, values are not.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from secateur.core.errors import SecateurError, nearest
from secateur.io.files import read_text
from secateur.recipes import toml
from secateur.recipes.kinds import (
    QUANTITIES,
    Count,
    Criterion,
    Device,
    Field,
    Flag,
    Fraction,
    Keep,
    NonNegative,
    Positive,
    Repairs,
    Share,
    Table,
    Text,
    Whole,
    Words,
)  # fmt: skip
from secateur.recipes.schema_lowrank import LowRank
from secateur.recipes.schema_search import Search
from secateur.recipes.schema_sparse import Sparsity
from secateur.recipes.schema_stage import Stage

with suppress(ImportError):  # the recipe is then taken at its word
    from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True)
class Model:
    """[model]: `build` is "file.py:function", "package.module:function", "torchvision:NAME", "timm:NAME" or "zoo:NAME"."""

    build: Text
    args: Table = field(default_factory=dict)
    weights: Annotated[str | None, Field(description="a path")] = None


@dataclass(frozen=True)
class Data:
    """[data]: `name` is a built-in set or "file.py:function". Selection uses `holdout` images of the training set only.

    `normalise` None takes the set's own mean and deviation; pretrained weights want those they were trained with.
    """

    name: Text = "digits"
    folder: Annotated[str | None, Field(description="a path")] = None
    args: Table = field(default_factory=dict)
    batch: Count = 128
    test_batch: Count = 500
    holdout: Whole = 0
    augment: Flag = True
    normalise: Literal["imagenet", "cifar10", "half", "none"] | None = None


@dataclass(frozen=True)
class Metric:
    """[metric]: "accuracy" or "file.py:function", called as function(model, batches); higher is better."""

    name: Text = "accuracy"


@dataclass(frozen=True)
class Prune:
    """[prune]: what remains and who decides. `rounds` cuts in that many equal ratios and scores anew before each.

    `keep` names "macs", "params", "bytes" of the saved tensors, "memory" of activations, "latency"; the last by the file
    `table` that `secateur measure --table` wrote, or by a table measured here and now.
    `isomorphic` ranks units only among axes of like layers; `normalise` is then of no effect.
    """

    keep: Keep = field(default_factory=lambda: {"macs": 0.5})
    criterion: Criterion = "taylor"
    args: Table = field(default_factory=dict)
    allocator: Literal["budget", "uniform"] = "budget"
    normalise: Literal["mean", "max", "sum", "l2", "rank", "none"] = "mean"
    floor: Fraction = 0.1
    multiple: Count = 1
    isomorphic: Flag = False
    ignore: Words = ()
    rounds: Count = 1
    batches: Count = 10
    table: Annotated[str | None, Field(description="a path")] = None


@dataclass(frozen=True)
class Repair:
    """[repair]: what `batches` training batches mend, by functions of `secateur.repair`; "+" does one after the other."""

    name: Repairs = "batchnorm"
    batches: Count = 50


@dataclass(frozen=True)
class Fit:
    """[train], [lowtrain], [finetune]: names as in `train.FitSettings`; `teacher` above 0 adds that share of distillation."""

    epochs: Whole = 0
    optimizer: Text = "sgd"
    lr: Positive = 0.1
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 5e-4
    nesterov: Flag = True
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Annotated[tuple[Share, ...], Field(description="a list of shares of training")] = (0.5, 0.75)
    gamma: Positive = 0.1
    warmup: NonNegative = 0
    label_smoothing: Fraction = 0.0
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: Flag = False
    compile: Flag = False
    grad_clip: Annotated[float | None, Field(gt=0, description="a number above 0")] = None
    teacher: Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")] = 0.0
    temperature: Positive = 4.0


@dataclass(frozen=True)
class Measure:
    """[measure]: latency is the median of `repeats` interleaved rounds over dense and small, on `batch` inputs."""

    latency: Flag = True
    repeats: Count = 30
    warmup: Whole = 5
    batch: Count = 1


@dataclass(frozen=True)
class Recipe:
    """Everything a run does. `threads` 0 leaves the choice to torch; 1 makes a run repeat bit for bit."""

    model: Model
    title: Text = ""
    seed: Whole = 0
    threads: Whole = 0
    loss: Annotated[str, Field(description='"cross_entropy" or "file.py:function"')] = "cross_entropy"
    device: Device = "auto"
    data: Data = field(default_factory=Data)
    metric: Metric = field(default_factory=Metric)
    train: Fit = field(default_factory=Fit)
    prune: Prune = field(default_factory=Prune)
    search: Search = field(default_factory=Search)
    lowrank: LowRank = field(default_factory=LowRank)
    lowtrain: Fit = field(default_factory=Fit)
    sparse: Sparsity = field(default_factory=Sparsity)
    repair: Repair = field(default_factory=Repair)
    finetune: Fit = field(default_factory=Fit)
    stage: Annotated[tuple[Stage, ...], Field(description="tables [[stage]]")] = ()
    measure: Measure = field(default_factory=Measure)


def read(path: str | Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Recipe:
    """The recipe in a TOML file; "file.py:..." and relative paths that lie beside the recipe become absolute.

    `change` may alter the table that was read, before it is checked.

    Raises `SecateurError` for a missing or unreadable file, TOML that does not parse, a wrong key or a wrong value.
    """
    path = Path(path)
    try:
        table = tomllib.loads(read_text(path, "recipe"))
    except tomllib.TOMLDecodeError as error:
        raise SecateurError(f"recipe {str(path)!r}", f"no valid TOML ({error})", "mend the file") from None
    if change:
        change(table)
    return from_dict(_beside(table, path.absolute().parent))


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
    one, two = _flat(asdict(a)), _flat(asdict(b))
    return sorted(key for key in one.keys() | two.keys() if key != "data.folder" and one.get(key) != two.get(key))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: _plain(value)}
    return flat


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _beside(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`table` with the files that lie beside the recipe named by absolute path."""

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
    return found


def _known(kind: type, table: Any, where: tuple[str, ...]) -> None:
    """Raise `SecateurError` for a key no field has, or a section that is no table."""
    section = f"[{'.'.join(where)}]" if where else "the recipe"
    if not isinstance(table, Mapping):
        raise SecateurError(section, f"{type(table).__name__} instead of a table", f"write {section} and its keys below")
    hints = get_type_hints(kind) if where == () else {}
    names = [f.name for f in fields(kind)]
    for key, value in table.items():
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
