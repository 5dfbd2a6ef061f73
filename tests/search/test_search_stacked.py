"""Judges that answer several questions at once say what a judge of single plans says, and change no search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from searches import digits, mean_loss
from secateur import allocate, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.search import AdaptiveSettings, Trial, adaptive, drive, previewing, sensitivity, stacked


@pytest.mark.parametrize("settle", [False, True])
def test_stacked_gates_judge_as_previews_do(settle: bool) -> None:
    model, batches = digits()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    axes = trace(model, batches[0][0])
    prepare = (lambda trial: repair.batchnorm(model, trial, batches)) if settle else None
    one = previewing(model, mean_loss(batches), prepare)
    refuse = lambda plan: pytest.fail("a plan that gates show")  # noqa: E731
    many = stacked(model, batches, F.cross_entropy, settle=batches if settle else None, chunk=3, otherwise=refuse)
    plans = [axes.plan({axis.name: range(1, axis.units)}) for axis in axes.free] + [axes.plan({})]
    plans.append(axes.plan({axis.name: range(axis.units - 2) for axis in axes.free}))
    assert len({round(one(plan), 9) for plan in plans}) == len(plans), "losses that tell mistakes"
    assert many(plans) == pytest.approx([one(plan) for plan in plans], rel=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_what_gates_cannot_show_goes_to_the_other_judge() -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    first = allocate.uniform(axes, score(axes, criteria.l2(model)), 0.8)
    again = trace(first.apply(model), batches[0][0])
    two = Plan(first.fingerprint, first.steps + again.plan({again.free[0].name: [0]}).steps)
    many = stacked(model, batches, F.cross_entropy, otherwise=lambda plan: 7.0)
    assert many([first, two])[1] == 7.0
    assert many([first])[0] < 7


@pytest.mark.parametrize("norm_first", [False, True])
def test_cuts_inside_transformer_layers_are_stacked_beside_the_norms_of_the_stream(norm_first: bool) -> None:
    """An axis that stays whole is in every plan; that a norm reads it must not send the plan to the other judge."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(24, 3))
    model = model.double().eval()
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 3, 8, generator=draw).double(), torch.randint(3, (n,), generator=draw)) for n in (6, 4)]
    axes = trace(model, batches[0][0])
    plans = [axes.plan({axis.name: range(axis.units // 2)}) for axis in axes.free if axis.kind != "width"]
    assert len(plans) >= 4, "heads and hidden units of two layers"
    refuse = lambda plan: pytest.fail("a plan that gates show")  # noqa: E731
    many = stacked(model, batches, F.cross_entropy, chunk=3, otherwise=refuse)
    one = previewing(model, mean_loss(batches))
    assert many([*plans, axes.plan({})]) == pytest.approx([one(plan) for plan in [*plans, axes.plan({})]], rel=1e-9)
    assert many([axes.plan({})] * 2) == pytest.approx([one(axes.plan({}))] * 2, rel=1e-9)
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_cannot_be_stacked_is_told() -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    plans = [axes.plan({axis.name: range(1, axis.units)}) for axis in axes.free][:2]
    for loss, words in (
        (lambda output, target: float(output.sum()), "RuntimeError: vmap"),
        (lambda output, target: output, r"a loss of shape \[12, 10\]"),
        (lambda output, target: 1.0, "TypeError|ValueError"),
    ):
        with pytest.raises(SecateurError, match=f"judged at once: found {words}"):
            stacked(model, batches, loss, otherwise=lambda plan: 0.0)(plans)
    with pytest.raises(SecateurError, match="is no pair"):
        stacked(model, [batches[0][0]], F.cross_entropy, otherwise=lambda plan: 0.0)(plans)
    for chunk in (0, -1, 1.5):
        with pytest.raises(SecateurError, match="candidates judged at once: found no such number"):
            stacked(model, batches, F.cross_entropy, chunk=chunk, otherwise=lambda plan: 0.0)


def test_a_search_is_the_same_one_by_one_and_many_at_once() -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    scores = score(axes, criteria.l1(model))
    judge = previewing(model, mean_loss(batches))
    many = stacked(model, batches, F.cross_entropy, otherwise=judge)
    settings = AdaptiveSettings(step=0.3, trial=0.05, running=0.2, sweeps=4)
    for search in (lambda: adaptive(axes, scores, settings), lambda: sensitivity(axes, scores, (0.3, 0.6))):
        alone: list[Trial] = []
        both: list[Trial] = []
        calls: list[int] = []

        def counted(plans, calls=calls):  # type: ignore[no-untyped-def]
            calls.append(len(plans))
            return many(plans)

        one = drive(search(), judge, record=alone.append)
        two = drive(search(), judge, record=both.append, many=counted)
        assert max(calls) > 1
        assert [trial.plan for trial in alone] == [trial.plan for trial in both]
        assert [trial.loss for trial in alone] == pytest.approx([trial.loss for trial in both], rel=1e-9)
        if isinstance(one, dict):
            assert list(one) == list(two)
            np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-9)
        else:
            assert one == two
        # a history that ends inside a batch of plans goes on
        for stop in (1, 2, 3):
            rest: list[Trial] = []
            drive(search(), judge, history=alone[:stop], record=rest.append, many=many)
            assert [trial.number for trial in rest] == list(range(stop, len(alone)))
