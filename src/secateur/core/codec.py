"""Plans to JSON and back.

A plan file holds names, numbers and text ranges, never the name of a class or module: reading a stranger's plan runs no
code. Reading is strict, so that a damaged or forged file is one clear sentence and not a wrong model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from secateur.core import ranges
from secateur.core.axis import Role, Slot
from secateur.core.errors import SecateurError, nearest
from secateur.core.factor import FORMATS, Factor, Product, factored
from secateur.core.mask import Mask, mask_from_json, mask_to_json
from secateur.core.plan import Cut, Keep, Plan, Step
from secateur.core.split import Split, split_from_json, split_to_json
from secateur.core.strict import MEND, array, bad, fields, integer, name_of, parse, show, table, units_of

FORMAT = 1
MOST_UNITS = 1 << 23
"""Units of all axes of a plan, and entries of one slot: a text range can name more than memory holds."""
_ROLES = get_args(Role)
_NO_SLOT = (0, 1, (), None)


Packed = Mapping[str, np.ndarray]
"""Codes of masks by name, in an artefact that holds them as tensors."""


def to_json(plan: Plan, packed: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    """`plan` as dicts, lists, text and integers. Equal plans give equal values.

    A slot is `[tensor, dim, role, start, step, loops, index]`, cut short where the rest says nothing. Codes of masks are
    text, unless `packed` is there to take them.
    """
    model = {name: list(plan.fingerprint[name]) for name in sorted(plan.fingerprint)}
    steps: list[dict[str, Any]] = []
    for number, step in enumerate(plan.steps, 1):
        if isinstance(step, Mask):
            steps.append(mask_to_json(step, number, packed))
        elif isinstance(step, Split):
            steps.append(split_to_json(step))
        elif isinstance(step, Factor):
            steps.append({"do": "factor", "products": [_product_to_json(product) for product in step.products]})
        else:
            steps.append({"do": "keep", "cuts": [_cut_to_json(cut) for cut in step.cuts]})
    return {"format": FORMAT, "model": model, "steps": steps}


def from_json(value: Any, packed: Packed | None = None) -> Plan:
    """The inverse of `to_json`.

    Raises `SecateurError` for a newer format, unknown or missing keys, wrong types, an unknown step, tensors the model
    does not have, and units or entries that repeat or lie outside.
    """
    value = fields(value, {"format", "model", "steps"}, set(), "the plan")
    number = integer(value["format"], 1, 1 << 31, "format")
    if number > FORMAT:
        raise SecateurError("reading a plan", f"format {number}, newer than the {FORMAT} known here", "upgrade secateur")
    shapes = {name_of(name, "a tensor name"): _shape(shape, name) for name, shape in table(value["model"], "model").items()}
    room, sizes = MOST_UNITS, dict(shapes)
    steps: list[Step] = []
    for position, step in enumerate(array(value["steps"], "steps"), 1):
        where = f"step {position}"
        does = table(step, where).get("do")
        if does == "factor":
            sizes = _factor(step, where, sizes, steps)
        elif does == "split":
            split, sizes = split_from_json(step, where, sizes)
            steps.append(split)
        elif does == "mask":
            steps.append(mask_from_json(step, position, sizes, packed))
        elif does == "keep" or "do" not in step:
            room = _keep(step, where, sizes, steps, room)
        else:
            raise bad(f"{where} does {show(does)}", "known: keep, factor, mask, split; upgrade secateur if the step is newer")
    return Plan(shapes, tuple(steps))


def dumps(plan: Plan) -> str:
    """`plan` as JSON text laid out for a diff: one line per tensor, one per cut with its kept units, one per slot."""
    value = to_json(plan)
    tensors = [f"    {_line(name)}: {_line(shape)}" for name, shape in value["model"].items()]
    steps = []
    for step in value["steps"]:
        if step["do"] != "keep":
            does, (key, parts) = step["do"], list(step.items())[1]
            rows = [f"      {_line(part)}" for part in parts]
            steps.append(f'    {{"do": "{does}", "{key}": [' + _block(rows, "    ") + "]}")
            continue
        cuts = []
        for cut in step["cuts"]:
            head = _line({key: part for key, part in cut.items() if key != "slots"})[:-1]
            cuts.append(
                f'      {head}, "slots": [' + _block([f"        {_line(slot)}" for slot in cut["slots"]], "      ") + "]}"
            )
        steps.append('    {"do": "keep", "cuts": [' + _block(cuts, "    ") + "]}")
    model, steps_text = _block(tensors, "  "), _block(steps, "  ")
    return f'{{\n  "format": {FORMAT},\n  "model": {{{model}}},\n  "steps": [{steps_text}]\n}}\n'


def loads(text: str | bytes, packed: Packed | None = None) -> Plan:
    """The plan in JSON `text`. Raises `SecateurError` as `from_json` does, and where `text` is no JSON."""
    return from_json(parse(text, "reading a plan"), packed)


def _keep(step: Any, where: str, sizes: dict[str, tuple[int, ...]], steps: list[Step], room: int) -> int:
    """Append the keep step to `steps`, shrink `sizes`; the units that remain to be named."""
    step = fields(step, {"do", "cuts"}, set(), where)
    cuts: list[Cut] = []
    going: dict[tuple[str, int], list[np.ndarray]] = {}
    for cut in array(step["cuts"], f"the cuts of {where}"):
        cuts.append(_cut(cut, where, sizes, going, room))
        room -= cuts[-1].units
    steps.append(Keep(tuple(cuts)))
    for (tensor, dim), gone in going.items():
        shape = list(sizes[tensor])
        shape[dim] -= len(np.unique(np.concatenate(gone)))
        sizes[tensor] = tuple(shape)
    return room


def _factor(step: Any, where: str, sizes: Mapping[str, tuple[int, ...]], steps: list[Step]) -> dict[str, tuple[int, ...]]:
    """Append the factor step to `steps`; the shapes it leads to."""
    step = fields(step, {"do", "products"}, set(), where)
    products: list[Product] = []
    after = dict(sizes)
    for value in array(step["products"], f"the products of {where}"):
        value = fields(value, {"layer", "format", "ranks"}, {"groups"}, f"a product of {where}")
        layer = name_of(value["layer"], f"a layer of {where}")
        at = f"{where}, layer {show(layer)}"
        if value["format"] not in FORMATS:
            raise bad(f"{at} with format {show(value['format'])}", f"known: {', '.join(FORMATS)}")
        ranks = tuple(integer(rank, 1, MOST_UNITS, f"a rank of {at}") for rank in array(value["ranks"], f"ranks of {at}"))
        groups = integer(value.get("groups", 1), 1, MOST_UNITS, f"groups of {at}")
        if any(layer == other.module or layer.startswith(f"{other.module}.") for other in products):
            raise bad(f"{at}, which stands twice or inside another product", MEND)
        try:
            products.append(Product(layer, value["format"], ranks, groups))
            after = factored(after, products[-1])
        except SecateurError as error:
            raise bad(f"{at}: {error.found}", error.do) from None
    steps.append(Factor(tuple(products)))
    return after


def _product_to_json(product: Product) -> dict[str, Any]:
    value = {"layer": product.module, "format": product.format, "ranks": list(product.ranks)}
    return value | ({} if product.groups == 1 else {"groups": product.groups})


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
    value = fields(value, {"axis", "units", "kept", "slots"}, {"exact", "gate"}, f"a cut of {where}")
    axis = name_of(value["axis"], f"an axis name of {where}")
    where = f"{where}, axis {show(axis)}"
    units = integer(value["units"], 1, room, f"units of {where}")
    exact, gate = value.get("exact", True), value.get("gate", "read")
    if type(exact) is not bool or gate not in ("read", "all"):
        raise bad(f"{where} with exact {show(exact)} and gate {show(gate)}", 'exact is true or false, gate "read" or "all"')
    kept = units_of(value["kept"], units, where)
    slots = tuple(_slot(slot, units, where, sizes) for slot in array(value["slots"], f"slots of {where}"))
    cut = Cut(axis, units, kept, slots, exact, gate)
    dropped = np.array(cut.dropped, dtype=np.int64)
    for slot in slots:
        if slot.dim >= 0 and len(dropped):
            going.setdefault((slot.tensor, slot.dim), []).append(slot.of(dropped).reshape(-1))
    return cut


def _slot(value: Any, units: int, where: str, sizes: Mapping[str, tuple[int, ...]]) -> Slot:
    parts = array(value, f"a slot of {where}")
    if not 3 <= len(parts) <= 7:
        raise bad(f"{where} with a slot of {len(parts)} parts", "a slot is [tensor, dim, role, start, step, loops, index]")
    tensor = name_of(parts[0], f"a tensor name of {where}")
    where = f"{where}, tensor {show(tensor)}"
    role = parts[2]
    if role not in _ROLES:
        raise bad(f"{where} with role {show(role)}", nearest(role[:40] if type(role) is str else "", _ROLES))
    start, step, loops, index = parts[3:] + list(_NO_SLOT[len(parts) - 3 :])
    pairs = []
    for loop in loops if loops == () else array(loops, f"loops of {where}"):
        pair = array(loop, f"a loop of {where}")
        if len(pair) != 2:
            raise bad(f"{where} with a loop of {len(pair)} numbers", "a loop is [count, stride]")
        pairs.append(
            (integer(pair[0], 1, MOST_UNITS, f"a loop of {where}"), integer(pair[1], 1, 1 << 40, f"a loop of {where}"))
        )
    slot = Slot(
        tensor,
        integer(parts[1], -1, 64, f"dim of {where}"),
        integer(start, 0, 1 << 40, f"start of {where}"),
        integer(step, 1, 1 << 40, f"step of {where}"),
        tuple(pairs),
        role,
        None if index is None else _index(index, units, where),
    )
    _bounds(slot, units, where, sizes)
    return slot


def _index(value: Any, units: int, where: str) -> tuple[tuple[int, ...], ...]:
    rows = [array(row, f"index of {where}") for row in array(value, f"index of {where}")]
    if len(rows) != units or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise bad(f"{where} with an index that is no table of {units} rows", "list the same number of entries for every unit")
    return tuple(tuple(integer(entry, 0, 1 << 40, f"index of {where}") for entry in row) for row in rows)


def _bounds(slot: Slot, units: int, where: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless every unit owns entries of its own inside the tensor's dim."""
    if (slot.dim == -1) != (slot.role == "count"):
        raise bad(f"{where} with dim {slot.dim} and role {show(slot.role)}", "dim is -1 for the role 'count', and only there")
    if slot.role == "count":
        # the attribute is set by name: a path through "__class__" would change more than this model
        if any(not part or part.startswith("__") for part in slot.tensor.split(".")):
            raise bad(f"{where}, which is no attribute that counts", MEND)
        return
    if slot.tensor not in sizes:
        raise bad(f"{where}, which the model does not have", _near(slot.tensor, list(sizes)))
    shape = sizes[slot.tensor]
    if slot.dim >= len(shape):
        raise bad(f"{where} cut in dim {slot.dim} of {len(shape)}", f"its dims run from 0 to {len(shape) - 1}")
    size, per_unit = shape[slot.dim], 1
    for count, _ in slot.loops:
        per_unit *= count
    per_unit = len(slot.index[0]) if slot.index else per_unit
    if per_unit * units > min(size, MOST_UNITS):
        raise bad(f"{where} with {units} units of {per_unit} entries in a dim of {size}", MEND)
    # in Python's integers: numpy's would wrap around
    last = slot.start + (units - 1) * slot.step + sum((count - 1) * stride for count, stride in slot.loops)
    last = max(map(max, slot.index)) if slot.index else last
    if last >= size:
        raise bad(f"{where} with entry {last} in a dim of {size}", f"entries run from 0 to {size - 1}")
    entries = slot.of(np.arange(units))
    if len(np.unique(entries)) < entries.size:
        raise bad(f"{where} where two units own one entry", MEND)


def _near(name: str, known: list[str]) -> str:
    """A spelling hint that never lists a whole network."""
    hint = nearest(name[:200], known)
    return hint if hint.startswith("did") else "name a tensor listed under 'model'"


def _shape(value: Any, name: str) -> tuple[int, ...]:
    return tuple(integer(size, 0, 1 << 40, f"the shape of {show(name)}") for size in array(value, f"the shape of {show(name)}"))


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _block(lines: list[str], indent: str) -> str:
    return "\n" + ",\n".join(lines) + f"\n{indent}" if lines else ""
