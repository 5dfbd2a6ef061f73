"""The laws bite: each rule broken on purpose is caught on some network of the zoo."""

import pytest
import torch

from networks import ZOO, builder
from networks_structures import STRUCTURES
from secateur.core.errors import SecateurError
from secateur.graph import dims as d
from secateur.graph.rules import RULES
from secateur.graph.rules.join import cat
from secateur.graph.state import State
from secateur.testing import LawBroken, counts_are_exact, laws, plans_compose, preview_equals_apply

LAWS = (preview_equals_apply, counts_are_exact, plans_compose)


def reversed_cat(state, node):
    """A wrong offset in concatenation: the parts in the wrong order."""
    cat(state, node)
    value = state.values[id(node.outputs[0])]
    dim = int(node.arg(1, "dim", 0)) % len(value.dims)
    if len({d.size((t,)) for t in value.dims[dim]}) == 1:
        value.dims[dim] = tuple(reversed(value.dims[dim]))


def swapped_heads(state, node):
    """Heads and their width change places where a packed projection is taken apart."""
    RULES_BEFORE["view"](state, node)
    value = state.values[id(node.outputs[0])]
    if len(value.dims) == 5:
        (parts,), (heads,), (width,) = (expr[0] for expr in value.dims[2:])
        packed = state.of(node.args[0]).dims[-1]
        packed[0][0].link = ((parts, width, heads),)


def unread(op):
    """An operation that forgets that it reads its input channels."""

    def rule(state, node):
        before = dict(state.roles)
        RULES_BEFORE[op](state, node)
        for place in [p for p, role in state.roles.items() if role == "read" and before.get(p) != "read"]:
            state.roles[place] = "scale"

    return rule


def exact_layer_norm(state, node):
    """A layer norm taken for a point-wise operation."""
    x = state.of(node.args[0])
    for tensor in (node.arg(2, "weight"), node.arg(3, "bias")):
        state.unite(x.dims[-1], state.of(tensor).dims[-1])
    state.set(x.dims, clean=x.clean)


def mean_is_harmless(state, node):
    """A mean over units that pretends to be exact."""
    x = state.of(node.args[0])
    gone = {int(i) % len(x.dims) for i in node.args[1]}
    state.set([e for i, e in enumerate(x.dims) if i not in gone], clean=x.clean)


RULES_BEFORE = dict(RULES)


class MeanOverUnits(torch.nn.Module):
    """Spatial attention: a mean over channels decides where to look."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3)
        self.head = torch.nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x * x.mean([1]).unsqueeze(1).sigmoid())


NETWORKS = {
    **{name: ZOO[name] for name in ("dense", "vision transformer", "residual", "plain")},
    **{name: STRUCTURES[name] for name in ("transposed convolutions", "einsum", "bilinear", "recurrent cells")},
    "mean over units": (MeanOverUnits, lambda: torch.randn(2, 3, 6, 6)),
}
MUTATIONS = {
    "cat": (reversed_cat, ["dense"]),
    "view": (swapped_heads, ["vision transformer"]),
    "convolution": (unread("convolution"), ["residual", "plain", "transposed convolutions"]),
    "einsum": (unread("einsum"), ["einsum"]),
    "bilinear": (unread("bilinear"), ["bilinear"]),
    "gru_cell": (unread("gru_cell"), ["recurrent cells"]),
    "layer_norm": (exact_layer_norm, ["vision transformer"]),
    "mean": (mean_is_harmless, ["mean over units"]),
}


@pytest.mark.parametrize("op", MUTATIONS)
def test_a_broken_rule_is_caught(op, monkeypatch):
    mutant, names = MUTATIONS[op]
    monkeypatch.setitem(RULES, op, mutant)
    for name in names:
        make, example = NETWORKS[name]
        for seed in range(4):
            try:
                laws(builder(make), example(), seed=seed, only=LAWS)
            except (LawBroken, SecateurError, RuntimeError):
                return
    pytest.fail(f"no law noticed that {op} is wrong")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_networks_pass_unbroken(name):
    make, example = NETWORKS[name]
    laws(builder(make), example(), only=LAWS)


def test_a_state_remembers_the_first_reason():
    state = State()
    expr = state.fresh(4, "first")
    d.freeze(expr, "second")
    assert [var.fixed for var in d.leaves(expr)] == ["first"]
