"""Plans to JSON and back.

A plan file holds names, numbers and text ranges, never the name of a class or module: reading a stranger's plan runs no
code. Reading is strict, so that a damaged or forged file is one clear sentence and not a wrong model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from secateur.core import ranges
from secateur.core.axis import Role, Slot
from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Cut, Keep, Plan

FORMAT = 1
MOST_UNITS = 1 << 23
"""Units of all axes of a plan, and entries of one slot: a text range can name more than memory holds."""
_MEND = "write the plan again with secateur, or mend that entry"
_ROLES = get_args(Role)
_NO_SLOT = (0, 1, (), None)


def to_json(plan: Plan) -> dict[str, Any]:
    """`plan` as dicts, lists, text and integers. Equal plans give equal values.

    A slot is `[tensor, dim, role, start, step, loops, index]`, cut short where the rest says nothing.
    """
    model = {name: list(plan.fingerprint[name]) for name in sorted(plan.fingerprint)}
    steps = [{"do": "keep", "cuts": [_cut_to_json(cut) for cut in step.cuts]} for step in plan.steps]
    return {"format": FORMAT, "model": model, "steps": steps}


def from_json(value: Any) -> Plan:
    """The inverse of `to_json`.

    Raises `SecateurError` for a newer format, unknown or missing keys, wrong types, an unknown step, tensors the model
    does not have, and units or entries that repeat or lie outside.
    """
    value = _fields(value, {"format", "model", "steps"}, set(), "the plan")
    number = _integer(value["format"], 1, 1 << 31, "format")
    if number > FORMAT:
        raise SecateurError("reading a plan", f"format {number}, newer than the {FORMAT} known here", "upgrade secateur")
    shapes = {_name(name, "a tensor name"): _shape(shape, name) for name, shape in _dict(value["model"], "model").items()}
    room, sizes, steps = MOST_UNITS, dict(shapes), []
    for position, step in enumerate(_list(value["steps"], "steps"), 1):
        where = f"step {position}"
        step = _fields(step, {"do", "cuts"}, set(), where)
        if step["do"] != "keep":
            raise _bad(f"{where} does {_show(step['do'])}", "known: keep; upgrade secateur if the step is newer")
        cuts: list[Cut] = []
        going: dict[tuple[str, int], list[np.ndarray]] = {}
        for cut in _list(step["cuts"], f"the cuts of {where}"):
            cuts.append(_cut(cut, where, sizes, going, room))
            room -= cuts[-1].units
        steps.append(Keep(tuple(cuts)))
        for (tensor, dim), gone in going.items():
            shape = list(sizes[tensor])
            shape[dim] -= len(np.unique(np.concatenate(gone)))
            sizes[tensor] = tuple(shape)
    return Plan(shapes, tuple(steps))


def dumps(plan: Plan) -> str:
    """`plan` as JSON text laid out for a diff: one line per tensor, one per cut with its kept units, one per slot."""
    value = to_json(plan)
    tensors = [f"    {_line(name)}: {_line(shape)}" for name, shape in value["model"].items()]
    steps = []
    for step in value["steps"]:
        cuts = []
        for cut in step["cuts"]:
            head = _line({key: part for key, part in cut.items() if key != "slots"})[:-1]
            cuts.append(
                f'      {head}, "slots": [' + _block([f"        {_line(slot)}" for slot in cut["slots"]], "      ") + "]}"
            )
        steps.append('    {"do": "keep", "cuts": [' + _block(cuts, "    ") + "]}")
    model, steps_text = _block(tensors, "  "), _block(steps, "  ")
    return f'{{\n  "format": {FORMAT},\n  "model": {{{model}}},\n  "steps": [{steps_text}]\n}}\n'


def loads(text: str | bytes) -> Plan:
    """The plan in JSON `text`. Raises `SecateurError` as `from_json` does, and where `text` is no JSON."""
    return from_json(parse(text, "reading a plan"))


def parse(text: str | bytes, asked: str) -> Any:
    """The value of strict JSON: no key twice, no NaN or infinity, UTF-8.

    Raises `SecateurError` that begins with `asked`, also for nesting deeper than the interpreter can follow.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError(f"the key {_show(Counter(name for name, _ in pairs).most_common(1)[0][0])} twice")
        return value

    def constant(word: str) -> Any:
        raise ValueError(f"the number {word}")

    do = "give a complete JSON file as secateur writes it"
    try:
        text = text.decode("utf-8-sig") if isinstance(text, (bytes, bytearray)) else text
        return json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise SecateurError(asked, f"no JSON at line {error.lineno}, column {error.colno} ({error.msg})", do) from None
    except UnicodeDecodeError:
        raise SecateurError(asked, "bytes that are no UTF-8 text", do) from None
    except RecursionError:
        raise SecateurError(asked, "JSON nested too deep to be real", do) from None
    except ValueError as error:
        raise SecateurError(asked, str(error).partition(";")[0], do) from None


def _cut_to_json(cut: Cut) -> dict[str, Any]:
    value: dict[str, Any] = {"axis": cut.axis, "units": cut.units, "kept": ranges.to_text(cut.kept)}
    value |= {} if cut.exact else {"exact": False}
    value |= {} if cut.gate == "read" else {"gate": cut.gate}
    return value | {"slots": [_slot_to_json(slot) for slot in cut.slots]}


def _slot_to_json(slot: Slot) -> list[Any]:
    tail = [slot.start, slot.step, slot.loops, slot.index]
    while tail and tail[-1] == _NO_SLOT[len(tail) - 1]:
        tail.pop()
    loops = [[list(pair) for pair in part] if isinstance(part, tuple) else part for part in tail]
    return [slot.tensor, slot.dim, slot.role, *loops]


def _cut(value: Any, where: str, sizes: Mapping[str, tuple[int, ...]], going: dict[Any, list[np.ndarray]], room: int) -> Cut:
    """The cut in `value`; the entries it drops are appended to `going[tensor, dim]`."""
    value = _fields(value, {"axis", "units", "kept", "slots"}, {"exact", "gate"}, f"a cut of {where}")
    axis = _name(value["axis"], f"an axis name of {where}")
    where = f"{where}, axis {_show(axis)}"
    units = _integer(value["units"], 1, room, f"units of {where}")
    exact, gate = value.get("exact", True), value.get("gate", "read")
    if type(exact) is not bool or gate not in ("read", "all"):
        raise _bad(f"{where} with exact {_show(exact)} and gate {_show(gate)}", 'exact is true or false, gate "read" or "all"')
    kept = _kept(value["kept"], units, where)
    slots = tuple(_slot(slot, units, where, sizes) for slot in _list(value["slots"], f"slots of {where}"))
    cut = Cut(axis, units, kept, slots, exact, gate)
    dropped = np.array(cut.dropped, dtype=np.int64)
    for slot in slots:
        if slot.dim >= 0 and len(dropped):
            going.setdefault((slot.tensor, slot.dim), []).append(slot.of(dropped).reshape(-1))
    return cut


def _kept(text: Any, units: int, where: str) -> tuple[int, ...]:
    if type(text) is not str or not re.fullmatch(r"[0-9 -]*", text):
        raise _bad(f"{where} keeping {_show(text)}", 'write kept units as ranges, "0 2 13-14"')
    # before the ranges are written out: "0-99999999999" is short text and much memory
    outside = next((number for number in re.findall(r"\d+", text) if len(number) > 9 or int(number) >= units), None)
    if outside:
        raise _bad(f"{where} keeping unit {_show(int(outside[:12]))} of {units}", f"units run from 0 to {units - 1}")
    try:
        return ranges.from_text(text)
    except ValueError as error:
        raise _bad(f"{where}: {error}", _MEND) from None


def _slot(value: Any, units: int, where: str, sizes: Mapping[str, tuple[int, ...]]) -> Slot:
    parts = _list(value, f"a slot of {where}")
    if not 3 <= len(parts) <= 7:
        raise _bad(f"{where} with a slot of {len(parts)} parts", "a slot is [tensor, dim, role, start, step, loops, index]")
    tensor = _name(parts[0], f"a tensor name of {where}")
    where = f"{where}, tensor {_show(tensor)}"
    role = parts[2]
    if role not in _ROLES:
        raise _bad(f"{where} with role {_show(role)}", nearest(role[:40] if type(role) is str else "", _ROLES))
    start, step, loops, index = parts[3:] + list(_NO_SLOT[len(parts) - 3 :])
    pairs = []
    for loop in loops if loops == () else _list(loops, f"loops of {where}"):
        pair = _list(loop, f"a loop of {where}")
        if len(pair) != 2:
            raise _bad(f"{where} with a loop of {len(pair)} numbers", "a loop is [count, stride]")
        pairs.append(
            (_integer(pair[0], 1, MOST_UNITS, f"a loop of {where}"), _integer(pair[1], 1, 1 << 40, f"a loop of {where}"))
        )
    slot = Slot(
        tensor,
        _integer(parts[1], -1, 64, f"dim of {where}"),
        _integer(start, 0, 1 << 40, f"start of {where}"),
        _integer(step, 1, 1 << 40, f"step of {where}"),
        tuple(pairs),
        role,
        None if index is None else _index(index, units, where),
    )
    _bounds(slot, units, where, sizes)
    return slot


def _index(value: Any, units: int, where: str) -> tuple[tuple[int, ...], ...]:
    rows = [_list(row, f"index of {where}") for row in _list(value, f"index of {where}")]
    if len(rows) != units or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise _bad(f"{where} with an index that is no table of {units} rows", "list the same number of entries for every unit")
    return tuple(tuple(_integer(entry, 0, 1 << 40, f"index of {where}") for entry in row) for row in rows)


def _bounds(slot: Slot, units: int, where: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless every unit owns entries of its own inside the tensor's dim."""
    if (slot.dim == -1) != (slot.role == "count"):
        raise _bad(f"{where} with dim {slot.dim} and role {_show(slot.role)}", "dim is -1 for the role 'count', and only there")
    if slot.role == "count":
        # the attribute is set by name: a path through "__class__" would change more than this model
        if any(not part or part.startswith("__") for part in slot.tensor.split(".")):
            raise _bad(f"{where}, which is no attribute that counts", _MEND)
        return
    if slot.tensor not in sizes:
        raise _bad(f"{where}, which the model does not have", _near(slot.tensor, list(sizes)))
    shape = sizes[slot.tensor]
    if slot.dim >= len(shape):
        raise _bad(f"{where} cut in dim {slot.dim} of {len(shape)}", f"its dims run from 0 to {len(shape) - 1}")
    size, per_unit = shape[slot.dim], 1
    for count, _ in slot.loops:
        per_unit *= count
    per_unit = len(slot.index[0]) if slot.index else per_unit
    if per_unit * units > min(size, MOST_UNITS):
        raise _bad(f"{where} with {units} units of {per_unit} entries in a dim of {size}", _MEND)
    # in Python's integers: numpy's would wrap around
    last = slot.start + (units - 1) * slot.step + sum((count - 1) * stride for count, stride in slot.loops)
    last = max(map(max, slot.index)) if slot.index else last
    if last >= size:
        raise _bad(f"{where} with entry {last} in a dim of {size}", f"entries run from 0 to {size - 1}")
    entries = slot.of(np.arange(units))
    if len(np.unique(entries)) < entries.size:
        raise _bad(f"{where} where two units own one entry", _MEND)


def _near(name: str, known: list[str]) -> str:
    """A spelling hint that never lists a whole network."""
    hint = nearest(name[:200], known)
    return hint if hint.startswith("did") else "name a tensor listed under 'model'"


def _shape(value: Any, name: str) -> tuple[int, ...]:
    return tuple(
        _integer(size, 0, 1 << 40, f"the shape of {_show(name)}") for size in _list(value, f"the shape of {_show(name)}")
    )


def _fields(value: Any, must: set[str], may: set[str], where: str) -> dict[str, Any]:
    value = _dict(value, where)
    if missing := sorted(must - set(value)):
        raise _bad(f"{where} without {missing[0]!r}", _MEND)
    if unknown := sorted(set(value) - must - may):
        raise _bad(f"{where} with the unknown key {_show(unknown[0])}", nearest(unknown[0][:40], sorted(must | may)))
    return value


def _typed(kind: type, words: str) -> Callable[[Any, str], Any]:
    def check(value: Any, where: str) -> Any:
        if type(value) is not kind:
            raise _bad(f"{_show(value)} for {where}", f"give {words}")
        return value

    return check


_dict = _typed(dict, "an object of names and values")
_list = _typed(list, "a list")


def _integer(value: Any, low: int, high: int, where: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _bad(f"{_show(value)} for {where}", f"give a whole number from {low} to {high}")
    return value


def _name(value: Any, where: str) -> str:
    # a name is printed: control characters in a stranger's file would drive the reader's terminal
    if type(value) is not str or not value or not value.isprintable():
        raise _bad(f"{_show(value)} for {where}", "give a printable name")
    return value


def _bad(found: str, do: str) -> SecateurError:
    return SecateurError("reading a plan", found, do)


def _show(value: Any) -> str:
    text = f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, dict)) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _block(lines: list[str], indent: str) -> str:
    return "\n" + ",\n".join(lines) + f"\n{indent}" if lines else ""
