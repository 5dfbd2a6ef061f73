"""One file for a compressed model: safetensors, with the plan in its header.

Header: `__metadata__` holds `secateur` (format of the artefact), `plan` (JSON), `aliases` (JSON: tied name -> saved name),
`sha256` (of the whole file with these 64 digits as zeros) and what the user adds. Any safetensors reader opens it.

Where the plan makes tensors sparse the format is 2: the plan, ties, masks and values are packed in three tensors of bytes
(`io/packing.py`), and `plan` names the one it is in. All other files are of format 1, as are sparse ones of secateur's first
months, whose values and masks are tensors of their own; both are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from secateur.core.codec import dumps, from_json, loads
from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.core.plan import Plan
from secateur.core.strict import parse
from secateur.io import packing, sparse
from secateur.io.container import Header, pack, tensors_of, verified
from secateur.io.files import MOST_TEXT, atomic, read_bytes, require_own, shown, write_text
from secateur.io.state import fill_, require_model, state_of, untie
from secateur.surgery import duplicate

_OWN = ("secateur", "plan", "aliases", "sha256")
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class _Contents:
    """A file as it was read: its plan, ties (name to saved name), and tensors by name, or `packed` in their place."""

    plan: Plan | None
    aliases: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    packed: packing.Packed | None


def save(
    path: str | os.PathLike[str], model: nn.Module, plan: Plan | None = None, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `model` and the `plan` that made it to one safetensors file, whole or not at all.

    Tied tensors are stored once; every dtype is kept. `metadata` is text of your own for the header.
    Raises `SecateurError` where the plan does not lead to this model, the state holds more than plain tensors, the file
    cannot be written, or `path` holds something else than a model secateur saved.
    """
    asked = f"saving {shown(path)}"
    require_own(path, "model file of secateur")
    require_model(model, asked)
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if key in _OWN or type(key) is not str or type(value) is not str:
            raise SecateurError(asked, f"metadata {key!r}: {value!r}", f"give text under names other than {', '.join(_OWN)}")
    tensors, aliases = untie(state_of(model, asked))
    if plan is not None:
        _require_end(plan, model, asked)
    if plan is not None and any(isinstance(step, Mask) for step in plan.steps):
        values, names = sparse.condense(tensors, aliases, plan, asked)
        tensors = packing.packed(plan, values, aliases, names, asked)
        metadata |= {"format": "pt", "secateur": "2", "plan": packing.INDEX}
    else:
        metadata |= {"format": "pt", "secateur": "1", "aliases": json.dumps(aliases, sort_keys=True)}
        metadata |= {} if plan is None else {"plan": dumps(plan)}
    head, body = pack(tensors, metadata, asked)
    with atomic(path) as file:
        file.write(head)
        file.write(body)


def load(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """The saved model: a copy of `into`, cut by the plan in the file and filled with its tensors, in their dtypes.

    `into` is a freshly built model of the architecture before the cut; it stays untouched. No tracer, no example input
    and no code from the file are needed. Training mode and devices are those of `into`.
    Raises `SecateurError` where the file is damaged, of another format, or made for another architecture.
    """
    asked = f"loading {shown(path)}"
    require_model(into, asked)
    data = read_bytes(path, "model file")
    contents = _contents(data, asked)
    plan, aliases, state = contents.plan, contents.aliases, dict(contents.tensors)
    if plan is not None:
        plan.check(into)  # before anything is unpacked to the sizes the file claims
        if contents.packed is not None:
            with _in_file(asked):
                state = packing.unpacked(contents.packed, _entries(plan, into))
        state = sparse.expand(state, aliases, plan, asked)
    for alias, name in aliases.items():
        if alias in state or name not in state:
            raise SecateurError(asked, f"tensor {alias!r} tied to {name!r}, which does not fit the file", _AGAIN)
        state[alias] = state[name]
    model = duplicate(into) if plan is None else plan.apply(into)
    fill_(model, state, asked, keep_dtype=True)
    return model


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a saved model or in a plan file (JSON).

    Raises `SecateurError` where the file is damaged, or a saved model without a plan.
    """
    asked = f"reading the plan {shown(path)}"
    data = read_bytes(path, "plan")
    # the first eight bytes of safetensors are a small number: they hold zeros, which no text does
    if data and not data[:8].count(0):
        if len(data) > MOST_TEXT:
            raise SecateurError(asked, f"{len(data):,} bytes of JSON", f"a plan has at most {MOST_TEXT:,}")
        return _plan(data, asked)
    if (plan := _contents(data, asked).plan) is None:
        raise SecateurError(asked, "a saved model without a plan", "save it with its plan, or give a plan file")
    return plan


def write_plan(path: str | os.PathLike[str], plan: Plan) -> None:
    """Write `plan` as JSON for a person to read and diff.

    Raises `SecateurError` where the file cannot be written, or `path` holds something else than a plan.
    """
    require_own(path, "plan")
    write_text(path, dumps(plan))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The user's own metadata of a saved model. Raises `SecateurError` as `load` does."""
    metadata = verified(read_bytes(path, "model file"), f"reading {shown(path)}").metadata
    return {key: value for key, value in metadata.items() if key not in (*_OWN, "format")}


def _contents(data: bytes, asked: str) -> _Contents:
    """What `save` wrote, of either format. Raises `SecateurError` where it is damaged or forged."""
    header = verified(data, asked)
    tensors = tensors_of(data, asked)
    if int(header.metadata["secateur"][:9]) > 1:
        with _in_file(asked):
            packed = packing.read(tensors)
            return _Contents(from_json(packed.plan, packed.codes), packed.aliases, {}, packed)
    codes = sparse.as_codes(tensors)
    plan = _plan(header.metadata["plan"], asked, codes) if "plan" in header.metadata else None
    if plan is not None:
        tensors = {name: value for name, value in tensors.items() if name not in codes}
    return _Contents(plan, _aliases(header, asked), tensors, None)


def _plan(text: str | bytes, asked: str, codes: Mapping[str, Any] | None = None) -> Plan:
    """The plan in JSON `text`, with the file's name in errors."""
    with _in_file(asked):
        return loads(text, codes)


@contextmanager
def _in_file(asked: str) -> Iterator[None]:
    """Errors of a plan and of packed parts name the file in which they stand."""
    try:
        yield
    except SecateurError as error:
        found = error.found if error.asked == "reading a plan" else f"{error.asked} with {error.found}"
        raise SecateurError(asked, found, error.do) from error


def _entries(plan: Plan, model: nn.Module) -> int:
    """Most entries a file can hold for `model` before or after the plan; state that is no parameter or buffer included."""
    from secateur.surgery.fingerprint import shapes_after

    return sum(prod(shape) for shape in shapes_after(plan).values()) + sum(t.numel() for t in model.state_dict().values())


def _aliases(header: Header, asked: str) -> dict[str, str]:
    aliases = parse(header.metadata.get("aliases", "{}"), asked)
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise SecateurError(asked, "a table of tied tensors that is none", _AGAIN)
    return aliases


def _require_end(plan: Plan, model: nn.Module, asked: str) -> None:
    from secateur.surgery.fingerprint import mismatches, shapes_after

    if not isinstance(plan, Plan):
        raise SecateurError(
            asked, f"an object of type {type(plan).__name__} in place of a plan", "give the Plan that made the model"
        )
    if wrong := mismatches(shapes_after(plan), model):
        raise SecateurError(asked, "a model this plan does not lead to: " + "; ".join(wrong[:3]), "give the plan that made it")
