"""Law 5: JSON round trip is the identity; and a damaged plan is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from secateur.core.axis import Slot
from secateur.core.codec import MOST_UNITS, dumps, from_json, loads, to_json
from secateur.core.errors import SecateurError
from secateur.core.plan import Cut, Keep, Plan
from secateur.core.strict import parse

SHAPES = {"a.weight": (4, 3, 3, 3), "norm.weight": (4,), "b.weight": (5, 36), "qkv.weight": (24, 8), "step": ()}
CHANNELS = Cut(
    "a",
    4,
    (0, 2, 3),
    (Slot("a.weight", 0, role="write"), Slot("norm.weight", 0), Slot("b.weight", 1, step=9, loops=((9, 1),), role="read")),
)
HEADS = Cut(
    "heads",
    2,
    (1,),
    (Slot("qkv.weight", 0, step=4, loops=((3, 8), (4, 1)), role="write"), Slot("block.num_heads", -1, role="count")),
    exact=False,
    gate="all",
)
LISTED = Cut("listed", 2, (0,), (Slot("b.weight", 0, role="scale", index=((3, 1), (0, 2))),))
PLAN = Plan(SHAPES, (Keep((CHANNELS, HEADS)), Keep((LISTED,))))


def random_plan(rng: np.random.Generator) -> Plan:
    """Axes of random tensors: a table of slots that never overlap, in one or two steps of the same sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    cuts = []
    for axis in range(rng.integers(0, 5)):
        units, slots = int(rng.integers(1, 20)), []
        for slot in range(rng.integers(0, 4)):
            entries, name = int(rng.integers(1, 4)), f"m{axis}.{slot}"
            start = int(rng.integers(0, 3))
            size = start + units * entries + int(rng.integers(0, 3))
            shapes[name] = (2, size)
            interleaved = bool(rng.integers(0, 2))
            step, stride = (1, units) if interleaved else (entries, 1)
            plain = Slot(name, 1, start, step, ((entries, stride),) if entries > 1 or interleaved else (), "read")
            index = tuple(map(tuple, rng.permutation(size)[: units * entries].reshape(units, entries).tolist()))
            slots.append(plain if rng.integers(0, 2) else Slot(name, 1, role="write", index=index))
        kept = np.flatnonzero(rng.random(units) < 0.6).tolist() or [0]
        cuts.append(Cut(f"axis {axis}", units, tuple(kept), tuple(slots), bool(rng.integers(0, 2))))
    return Plan(shapes, (Keep(tuple(cuts)),))


@pytest.mark.parametrize("plan", [PLAN, Plan({}), Plan(SHAPES), Plan({"x": ()})], ids=["full", "nothing", "empty", "scalar"])
def test_round_trip(plan: Plan) -> None:
    assert loads(dumps(plan)) == plan
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
    assert dumps(loads(dumps(plan))) == dumps(plan)
    assert json.loads(dumps(plan)) == to_json(plan)
    assert not plan.diff(loads(dumps(plan)))


@pytest.mark.parametrize("seed", range(50))
def test_round_trip_of_random_plans(seed: int) -> None:
    plan = random_plan(np.random.default_rng(seed))
    again = loads(dumps(plan).encode())
    assert again == plan
    assert hash(again) == hash(plan)


def test_equal_plans_give_equal_text() -> None:
    other = Plan(dict(reversed(SHAPES.items())), (Keep((HEADS, CHANNELS)), Keep((LISTED,))))
    assert other == PLAN
    assert dumps(other) == dumps(PLAN)


def test_a_change_of_kept_units_is_one_line() -> None:
    other = Plan(SHAPES, (Keep((replace(CHANNELS, kept=(0, 3)), HEADS)), Keep((LISTED,))))
    changed = [(a, b) for a, b in zip(dumps(PLAN).splitlines(), dumps(other).splitlines(), strict=True) if a != b]
    assert [(a.strip()[:45], b.strip()[:41]) for a, b in changed] == [
        ('{"axis": "a", "units": 4, "kept": "0 2-3", "s', '{"axis": "a", "units": 4, "kept": "0 3", '),
    ]


def test_the_second_step_is_held_against_the_sizes_the_first_leaves() -> None:
    later = Cut("later", 3, (0,), (Slot("a.weight", 0, role="write"),))
    value = to_json(Plan(SHAPES, (Keep((CHANNELS,)), Keep((later,)))))
    assert from_json(value).steps[1].cuts == (later,)
    value["steps"][1]["cuts"][0] |= {"units": 4, "kept": "0"}
    with pytest.raises(SecateurError, match="4 units of 1 entries in a dim of 3"):
        from_json(value)


def test_axes_that_share_a_dim_are_no_overlap() -> None:
    # heads and the dims of a head both live in the rows of one projection
    heads = Cut("head", 2, (0,), (Slot("q", 0, step=3, loops=((3, 1),)),))
    dims = Cut("dim", 3, (0, 1), (Slot("q", 0, loops=((2, 3),)),))
    plan = Plan({"q": (6, 2)}, (Keep((heads, dims)), Keep((Cut("rest", 2, (1,), (Slot("q", 0),)),))))
    assert loads(dumps(plan)) == plan


def test_dense_networks() -> None:
    # as DenseNet-121: 60 axes of 32 units, each read by up to 60 layers
    shapes = {f"layer{i}.weight": (32, 64 + 32 * i) for i in range(60)}
    cuts = []
    for i in range(60):
        readers = [Slot(f"layer{j}.weight", 1, 64 + 32 * i, role="read") for j in range(i + 1, 60)]
        cuts.append(Cut(f"layer{i}", 32, tuple(range(0, 32, 2)), (Slot(f"layer{i}.weight", 0, role="write"), *readers)))
    plan = Plan(shapes, (Keep(tuple(cuts)),))
    assert loads(dumps(plan)) == plan


def broken(path: tuple, value: object) -> dict:
    """The plan as JSON with the entry at `path` replaced, or removed where `value` is `...`."""
    whole = json.loads(dumps(PLAN))
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return whole


CUT = ("steps", 0, "cuts", 0)
SLOT = (*CUT, "slots", 0)
BROKEN = [
    ((), [], "a list of 0"),
    (("format",), 2, "newer than the 1"),
    (("format",), 0, "0 for format"),
    (("format",), True, "True for format"),
    (("format",), "1", "'1' for format"),
    (("format",), ..., "without 'format'"),
    (("model",), [], "a list of 0 for model"),
    (("model", "a.weight"), [4, -3, 3, 3], "-3 for the shape"),
    (("model", "a.weight"), [4, 1.0, 3, 3], "1.0 for the shape"),
    (("model", "a.weight"), "4x3", "'4x3' for the shape"),
    (("model", "a.weight"), ..., "'a.weight', which the model does not have"),
    (("modle",), {}, "did you mean 'model'"),
    (("import",), "os", "the unknown key 'import'"),
    (("steps",), {}, "a dict of 0 for steps"),
    (("steps", 0), "keep", "'keep' for step 1"),
    (("steps", 0, "do"), "graft", "step 1 does 'graft'"),
    (("steps", 0, "do"), ["keep"], "step 1 does a list of 1"),
    (("steps", 0, "cuts"), None, "None for the cuts"),
    ((*CUT, "axis"), "", "'' for an axis name"),
    ((*CUT, "axis"), 3, "3 for an axis name"),
    ((*CUT, "axis"), "a\x1b[2J", "for an axis name"),
    ((*CUT, "axis"), "a\ud800", "for an axis name"),
    ((*CUT, "axis"), "heads", "axis 'heads' named twice"),
    ((*CUT, "units"), 0, "0 for units"),
    ((*CUT, "units"), 5, "dim of 4"),
    ((*CUT, "units"), 10**30, "for units"),
    ((*CUT, "units"), MOST_UNITS, "dim of 4"),
    ((*CUT, "kept"), "", "no unit left"),
    ((*CUT, "kept"), [0, 1], "a list of 2"),
    ((*CUT, "kept"), "0-99999999999", "unit 99999999999 of 4"),
    ((*CUT, "kept"), "0 " + "9" * 5000, "of 4"),
    ((*CUT, "kept"), "0-4", "unit 4 of 4"),
    ((*CUT, "kept"), "-1 2", "'-1' is no unit"),
    ((*CUT, "kept"), "3-1", "runs backwards"),
    ((*CUT, "kept"), "1 1", "none is named twice"),
    ((*CUT, "kept"), "0-2 1", "none is named twice"),
    ((*CUT, "kept"), "2 0", "units ascend"),
    ((*CUT, "kept"), "0 1 --", "no unit"),
    ((*CUT, "kept"), "٣", "keeping"),
    ((*CUT, "exact"), 1, "exact 1"),
    ((*CUT, "gate"), "none", "gate 'none'"),
    ((*CUT, "keep"), "0", "did you mean 'kept'"),
    ((*CUT, "slots"), "a.weight", "for slots"),
    (SLOT, ["a.weight", 0], "a slot of 2 parts"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [], None, 1], "a slot of 8 parts"),
    (SLOT, ["a.weigth", 0, "write"], "did you mean 'a.weight'"),
    (SLOT, ["a.weight", 4, "write"], "dim 4 of 4"),
    (SLOT, ["a.weight", -2, "write"], "-2 for dim"),
    (SLOT, ["a.weight", -1, "write"], "dim is -1 for the role 'count'"),
    (SLOT, ["a.weight", 0, "count"], "dim is -1 for the role 'count'"),
    (SLOT, ["step", 0, "scale"], "dim 0 of 0"),
    (SLOT, ["a.weight", 0, "writes"], "did you mean 'write'"),
    (SLOT, ["a.weight", 0, {}], "role a dict of 0"),
    (SLOT, ["a.weight", 0, "write", 1], "entry 4 in a dim of 4"),
    (SLOT, ["a.weight", 0, "write", -1], "-1 for start"),
    (SLOT, ["a.weight", 0, "write", 0, 0], "0 for step"),
    (SLOT, ["a.weight", 0, "write", 0, 2], "entry 6 in a dim of 4"),
    (SLOT, ["a.weight", 0, "write", 1 << 40, 1 << 40], "in a dim of 4"),
    (SLOT, ["a.weight", 0, "write", 0, 1, 7], "7 for loops"),
    (SLOT, ["a.weight", 0, "write", 0, 1, None], "None for loops"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [[2]]], "a loop of 1"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [[2, 1]]], "4 units of 2 entries"),
    (SLOT, ["b.weight", 1, "write", 0, 1, [[2, 1]]], "two units own one entry"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [[1 << 20, 1], [1 << 20, 1], [1 << 20, 1]]], "in a dim of 4"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [], [[0], [1], [2]]], "no table of 4 rows"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [], [[0], [1], [2], []]], "no table of 4 rows"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [], [[0], [1], [2], [4]]], "entry 4 in a dim of 4"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [], [[0], [1], [2], [2]]], "two units own one entry"),
    (SLOT, ["a.weight", 0, "write", 0, 1, [], [[0], [1], [2], [-1]]], "-1 for index"),
    (SLOT, ["block.__class__.width", -1, "count"], "no attribute that counts"),
    (SLOT, ["block..width", -1, "count"], "no attribute that counts"),
]


@pytest.mark.parametrize(("path", "value", "says"), BROKEN, ids=[f"{i}: {case[2][:30]}" for i, case in enumerate(BROKEN)])
def test_broken_plans_are_refused(path: tuple, value: object, says: str) -> None:
    whole = value if not path else broken(path, value)
    with pytest.raises(SecateurError) as caught:
        from_json(whole)
    text = str(caught.value)
    assert says in text
    assert text.endswith((".", "?"))
    assert "\n" not in text
    assert len(text) < 400
    assert text.isprintable()


TEXTS = [
    ("", "no JSON at line 1"),
    ("{", "no JSON at line 1"),
    (dumps(PLAN)[:-20], "no JSON at line"),
    ("[" * 200_000, "nested too deep"),
    ('{"a":' * 200_000, "nested too deep"),
    ('{"format": 1, "format": 1, "model": {}, "steps": []}', "the key 'format' twice"),
    ('{"format": NaN, "model": {}, "steps": []}', "the number NaN"),
    ('{"format": 1, "model": {"x": [Infinity]}, "steps": []}', "the number Infinity"),
    ('{"format": ' + "1" * 5000 + "}", "4300 digits"),
    ('{"format": 1e999, "model": {}, "steps": []}', "inf for format"),
    (b"\xff\xfe{}", "no UTF-8"),
    ("null", "None for the plan"),
]


@pytest.mark.parametrize(("text", "says"), TEXTS, ids=[case[1] for case in TEXTS])
def test_text_that_is_no_plan(text: str | bytes, says: str) -> None:
    with pytest.raises(SecateurError) as caught:
        loads(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_values_nested_just_below_the_limit_are_refused_too() -> None:
    deep: object = []
    for _ in range(900):
        deep = [deep]
    for path in (("format",), ("model", "a.weight"), (*CUT, "kept"), SLOT):
        with pytest.raises(SecateurError):
            from_json(broken(path, deep))


def test_a_byte_order_mark_is_no_error() -> None:
    assert parse(b'\xef\xbb\xbf{"a": 1}', "reading") == {"a": 1}
