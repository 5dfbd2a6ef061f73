"""What sparse training acts on, and what it refuses: settings, layers, states and plans that make no sense."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import SecateurError
from secateur.core.plan import Plan
from secateur.surgery import fingerprint
from secateur.testing import distance
from secateur.train.sparse import Growth, Layout, Ramp, Rank, Sparse, fixed, gmp, one_shot, rpg, st3, weights_of
from sparse_cases import Net, net


def test_transformers_and_attention_with_packed_weights():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    names = [weight.name for weight in weights_of(model)]
    assert names == ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    hook = rpg(model, 0.1, 30, every=3, optimizer=optimizer)
    assert hook.rank.linear
    x = torch.randn(4, 5, 8)
    for _ in range(30):
        model(x).square().mean().backward()
        hook.after_backward()
        optimizer.step()
        hook.after_step()
        optimizer.zero_grad()
    assert hook.density == pytest.approx(0.1, abs=2e-3)
    plan = hook.plan()
    assert distance(plan.preview(model.eval()), plan.apply(model), x) == 0


def test_tied_weights_count_once_and_dense_patterns_are_kept():
    model = Net()
    model.twin2.weight = model.twin.weight
    assert [w.name for w in weights_of(model)] == ["stem.weight", "wide.weight", "twin.weight", "head.weight"]
    hook = gmp(model, 0.1, 40, every=3, dense=["stem", "head.weight"])
    assert list(hook.masks) == ["wide.weight", "twin.weight"]
    with pytest.raises(SecateurError, match="no layer"):
        weights_of(model, ["hed"])


WRONG = {
    "keep 0": (lambda: rpg(net(), 0, 100), "no share"),
    "keep 2": (lambda: gmp(net(), 2, 100), "no share"),
    "reading": (lambda: rpg(net(), 0.1, 100, reading="paper"), "no such reading"),
    "steps": (lambda: gmp(net(), 0.1, 0.5), "steps=0.5"),
    "too few steps": (lambda: rpg(net(), 0.1, 150), "change masks more often"),
    "a shape": (lambda: Ramp(0.1, 100, "cubical"), "did you mean 'cubic'"),
    "an order": (lambda: Ramp(0.1, 100, begin=0.9, end=0.5), "begin"),
    "delta": (lambda: Rank(1.0, 1.0), "between 0 and 1"),
    "lambda": (lambda: Rank(-1.0), "strength"),
    "a moment": (lambda: Rank(1.0, acts="epoch"), "growth"),
    "decompositions": (lambda: Rank(1.0, every=0), "whole number"),
    "a drop": (lambda: Growth(2.0), "share"),
    "no convolution": (lambda: Sparse(nn.Linear(3, 3), Ramp(0.5, 100, every=10), rank=Rank(1.0)), "linear=True"),
    "nothing": (lambda: gmp(nn.BatchNorm1d(3), 0.1, 100, every=10), "no weight"),
    "a pattern that hits nothing": (lambda: gmp(net(), 0.1, 100, every=10, dense=["fc*"]), "no layer"),
    "a layout": (lambda: Layout("globally"), "did you mean 'global'"),
    "a group": (lambda: Layout(pattern="4:2"), "2:4"),
    "both": (lambda: Layout(pattern="2:4", occupancy=1), "one of them"),
    "2:4 of another share": (lambda: gmp(net(), 0.1, 100, every=10, layout=Layout(pattern="2:4")), "keep=0.5"),
    "growth in groups": (lambda: rpg(net(), 0.5, 100, every=10, layout=Layout(pattern="2:4")), "blocks"),
    "soft growth": (lambda: Sparse(net(), Ramp(0.5, 100, every=10), growth=Growth(), soft=True), "leave growth out"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_one_sentence(case):
    ask, words = WRONG[case]
    with pytest.raises(SecateurError, match=words):
        ask()


@pytest.mark.parametrize("layout", [Layout(pattern="4x1"), Layout(occupancy=1)])
def test_thresholds_go_with_no_layout_that_keeps_small_entries(layout):
    with pytest.raises(SecateurError, match="soft thresholds"):
        st3(net(), 0.1, 20, layout=layout)


def test_a_state_of_other_layers_is_refused():
    state = gmp(net(), 0.1, 40, every=3).state_dict()
    with pytest.raises(SecateurError, match="does not fit"):
        gmp(net(), 0.1, 40, every=3, dense=["head"]).load_state_dict(state)


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(SecateurError, match=r"did you mean|no tensor|where the plan has"):
        fixed(net(), one_shot(nn.Sequential(nn.Linear(3, 3)), 0.5))
    assert Plan(fingerprint(net())) == fixed(net(), Plan(fingerprint(net()))).plan()
