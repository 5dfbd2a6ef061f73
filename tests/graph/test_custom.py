"""The user's own operations: one line or one function is a rule, one call is an axis, and what is missing is named."""

import pytest
import torch
from torch import nn

from secateur import SecateurError, Slot, trace
from secateur.graph import RULES, relate, rule
from secateur.testing import awake, counts_are_exact, down_to_one, laws, preview_equals_apply, random_plan


@torch.library.custom_op("secateur_tests::mix", mutates_args=())
def mix(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bni,oi->bno", x, weight) + bias


@mix.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("secateur_tests::blind", mutates_args=())
def blind(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


torch.library.define("secateur_tests::halve", "(Tensor x) -> Tensor")
torch.library.impl("secateur_tests::halve", "CompositeExplicitAutograd", lambda x: x.unflatten(-1, (2, -1)).sum(-2))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(3, 2)
        self.weight, self.bias = nn.Parameter(torch.rand(6, 8)), nn.Parameter(torch.rand(6))

    def forward(self, x):
        x = mix(self.first(x).relu(), self.weight, self.bias)
        return self.last(torch.ops.secateur_tests.halve(x))


@pytest.fixture
def clean_table():
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return awake(Mixed())


X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


def test_without_a_rule_all_stays_and_the_notes_say_what_a_rule_is_worth():
    axes = trace(build(), X)
    assert not axes.free
    assert "secateur_tests.mix" in axes["first"].fixed
    assert [note.split(",")[0] for note in axes.notes] == [
        "no rule for secateur_tests.mix", "no rule for secateur_tests.halve",
    ]  # fmt: skip
    assert axes.notes[0].endswith(f"up to {5 * 8 + 8 + 8 * 6 + 6:,} parameters")


@pytest.mark.parametrize("op", [mix, torch.ops.secateur_tests.mix, torch.ops.secateur_tests.mix.default, "secateur_tests::mix"])
def test_one_line_frees_it(op, clean_table):
    rule(op, "... i, o i, o -> ... o")
    rule("secateur_tests::halve", "... (2 c) -> ... c", zero="all")
    axes = trace(build(), X)
    assert sorted(axis.units for axis in axes.free) == [3, 8]
    for seed in range(4):
        preview_equals_apply(build, X, axes, random_plan(axes, seed=seed))
    least = axes.plan({axis.name: [axis.units - 1] for axis in axes.free})
    preview_equals_apply(build, X, axes, least)


def test_a_wrong_line_is_caught_by_the_laws(clean_table):
    """Broken on purpose: the two halves in the wrong order of factors."""
    rule(mix, "... i, o i, o -> ... o")
    rule("secateur_tests::halve", "... (c 2) -> ... c")
    with pytest.raises((AssertionError, RuntimeError)):
        laws(build, X, only=(preview_equals_apply,))


LINES = {
    "linear": ("... i, o i, o -> ... o", nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), (2, 5)),
    "relu": ("... -> ...", nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), (2, 5)),
    "batch_norm": (
        "b c h w, c, c, c, c -> b c h w",
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
        (2, 3, 4, 4),
    ),
    "channel_shuffle": (
        "b (2 c) h w -> b (c 2) h w",
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 2, 1)),
        (2, 3, 4, 4),
    ),
}


@pytest.mark.parametrize("op", LINES)
def test_lines_agree_with_the_rules_of_the_table(op):
    line, model, shape = LINES[op]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    own, ours = trace(model, x, rules={op: relate(line, zero="all")}), trace(model, x)
    if op == "channel_shuffle":  # the number of groups is an attribute there, and written in the line here
        assert [a.units for a in own.free] == [4]
    else:
        assert [(a.name, a.slots) for a in own.free] == [(a.name, a.slots) for a in ours.free]
    preview_equals_apply(lambda: awake(model), x, own, random_plan(own))


@pytest.mark.parametrize("line", ["b c", "b c -> b c -> b", "b [c] -> b", "... c ... -> c", "b-c -> b"])
def test_lines_that_cannot_be_read(line):
    with pytest.raises(SecateurError, match="a rule"):
        relate(line)


def test_a_line_that_does_not_fit_fixes_and_says_so(clean_table):
    rule(mix, "b i, o i -> b o")
    axes = trace(build(), X)
    assert "does not cover" in axes["first"].fixed


def test_an_operation_that_is_none():
    with pytest.raises(SecateurError, match="name it as in"):
        rule(3, "... -> ...")


def test_no_fake_implementation_is_said():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 4)

        def forward(self, x):
            return blind(self.a(x))

    with pytest.raises(SecateurError, match="secateur_tests::blind"):
        trace(Blind(), X)


def test_an_autograd_function_is_looked_through():
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(Square.apply(self.a(x)))

    axes = laws(lambda: awake(Squared()), X, only=(counts_are_exact, down_to_one))
    assert [axis.name for axis in axes.free] == ["a"]


def declared(axes, model=None, **changes):
    slots = [Slot("first.weight", 0, role="write"), Slot("first.bias", 0, role="write"), Slot("weight", 1, role="read")]
    return axes.declare("hidden", **{"units": 8, "slots": slots, "model": model, **changes})


def test_an_axis_by_hand():
    model = build()
    axes = declared(trace(model, X), model)
    plan = axes.plan({"hidden": [0, 3, 7]})
    small = plan.apply(model)
    assert torch.allclose(plan.preview(model)(X), small(X), atol=1e-6)
    assert axes.count("params", {"hidden": 3}) == sum(p.numel() for p in small.parameters())
    assert "MACs" in axes.notes[-1]
    assert "declared by hand" in axes["first"].fixed
    assert declared(trace(model, X)).count("params", {"hidden": 3}) == sum(p.numel() for p in model.parameters())


BAD = {
    "no tensor": {"slots": [Slot("first.wieght", 0)]},
    "dim 2": {"slots": [Slot("first.weight", 2)]},
    "entries 0 to 8": {"units": 9},
    "share entries": {"slots": [Slot("first.weight", 0, loops=((2, 1),))], "units": 4},
    "at least two": {"units": 1},
}


@pytest.mark.parametrize("found", BAD)
def test_an_axis_by_hand_that_does_not_fit(found):
    with pytest.raises(SecateurError, match=found):
        declared(trace(build(), X), **BAD[found])


def test_an_axis_by_hand_over_a_free_one(clean_table):
    rule(mix, "... i, o i, o -> ... o")
    axes = trace(build(), X)
    with pytest.raises(SecateurError, match="can be cut already"):
        declared(axes)
    with pytest.raises(SecateurError, match="an axis of that name"):
        declared(declared(axes.ignore("first")))


def test_a_square_tensor_counts_once():
    """Both dims of one tensor follow the declared axis: the product of two sizes that shrink together."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.rand(6, 6)), nn.Linear(5, 4)

        def forward(self, x):
            return self.out(x) + torch.linalg.det(self.weight)

    model = Twice()
    axes = trace(model, X).declare("both", 6, [Slot("weight", 0), Slot("weight", 1)], model=model)
    assert axes.count("params") - axes.count("params", {"both": 2}) == 36 - 4
