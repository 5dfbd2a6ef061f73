"""A learned order is followed as far as batches bear it out, and no further than L1 where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import handmade
from secateur import allocate, criteria, score, trace
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.criteria import scoring_net
from secateur.criteria.scoring import TRUSTS, NetSettings, ScoringNet, Task, weighed
from secateur.io import save_scorer
from secateur.recipes.choose import choose
from secateur.recipes.schema import Prune
from secateur.surgery import on_batch_statistics

SHARE = 0.5


def ranked(axes: Any, scores: Any, share: float) -> Any:
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.0)


def task() -> Task:
    model = handmade.small()
    return Task(model, handmade.axes(model), handmade.data(3, 12), F.cross_entropy, ranked)


def by_l1(of: Task, share: float = SHARE) -> Any:
    scores = score(of.axes, criteria.l1(of.model))
    return allocate.budget(of.axes, scores, {"macs": share}, normalise="mean", floor=0.0)


def noise(seed: int) -> Any:
    return criteria.random(handmade.small(), seed=seed)


def judged(of: Task, plan: Any) -> float:
    twin = on_batch_statistics(plan.preview(of.model))
    with torch.no_grad():
        return sum(float(F.cross_entropy(twin(x), y)) for x, y in of.batches) / len(of.batches)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_without_trust_the_plan_is_that_of_l1_and_with_all_of_it_that_of_the_net(share: float) -> None:
    of = task()
    for trust, plan in ((0.0, by_l1(of, share)), (1.0, ranked(of.axes, score(of.axes, noise(3)), share))):
        found = weighed(noise(3), of, share, trusts=(trust,))
        assert found.trust == trust
        assert ranked(of.axes, score(of.axes, found.criterion), share) == plan


def test_what_is_followed_has_the_least_loss_and_losses_are_those_of_the_cut_network() -> None:
    of, chosen = task(), set()
    for seed in range(6):
        found = weighed(noise(seed), of, SHARE)
        assert tuple(found.losses) == TRUSTS
        assert found.losses[found.trust] == min(found.losses.values())
        assert found.losses[0.0] == pytest.approx(judged(of, by_l1(of)), rel=1e-5)
        plan = ranked(of.axes, score(of.axes, found.criterion), SHARE)
        assert found.losses[found.trust] == pytest.approx(judged(of, plan), rel=1e-5)
        chosen.add(found.trust)
    assert len(chosen) > 1, "noise that is always as good tells nothing"


def test_the_model_and_its_statistics_stay_as_they_are() -> None:
    of = task()
    before = {name: value.clone() for name, value in of.model.state_dict().items()}
    modes = [module.training for module in of.model.modules()]
    weighed(noise(0), of, SHARE)
    assert all(torch.equal(value, before[name]) for name, value in of.model.state_dict().items())
    assert [module.training for module in of.model.modules()] == modes


def test_so_many_passes_and_no_more() -> None:
    of, passes = task(), []

    def loss(output: Any, target: Any) -> Tensor:
        passes.append(len(target))
        return F.cross_entropy(output, target)

    weighed(noise(0), Task(of.model, of.axes, of.batches, loss, ranked), SHARE, trusts=(0.0, 0.5, 1.0), limit=2)
    assert len(passes) == 3 * 2


@pytest.mark.parametrize("trusts", [(), (1.5,), (-0.1, 0.5), (float("nan"),)])
def test_a_trust_that_is_no_share_is_refused(trusts: tuple[float, ...]) -> None:
    with pytest.raises(SecateurError, match="give numbers from 0 to 1"):
        weighed(noise(0), task(), SHARE, trusts=trusts)


def test_an_order_whose_loss_is_no_number_is_not_followed() -> None:
    of, answers = task(), iter((float("nan"), 2.0, 1.0))

    def loss(*_: Any) -> Tensor:
        return torch.tensor(next(answers))

    found = weighed(noise(0), Task(of.model, of.axes, of.batches, loss, ranked), SHARE, trusts=(0.0, 0.5, 1.0), limit=1)
    assert found.trust == 1.0


def test_a_network_of_which_nothing_can_go_is_told_by_the_allocator() -> None:
    of = task()
    whole = Axes(tuple(axis.freeze("kept") for axis in of.axes), of.axes.fingerprint, of.axes.terms, of.axes.notes)
    with pytest.raises(SecateurError, match="no axis that can be cut"):
        weighed(noise(0), Task(of.model, whole, of.batches, F.cross_entropy, ranked), SHARE)


def test_no_batch_is_refused_in_one_sentence() -> None:
    of = task()
    with pytest.raises(SecateurError, match="no batch"):
        weighed(noise(0), Task(of.model, of.axes, [], F.cross_entropy, ranked), SHARE)


def misled() -> ScoringNet:
    """A net that keeps the smallest units."""
    net = ScoringNet(NetSettings())
    net.start.weight.data.neg_()
    return net.eval()


def test_a_trained_net_is_weighed_where_a_share_is_given() -> None:
    of = task()
    how: dict[str, Any] = {"axes": of.axes, "allocate": ranked, "net": misled()}
    alone = scoring_net(of.model, of.batches, of.loss, **how)
    asked = misled().criterion(of.model, of.axes)
    assert same(score(of.axes, alone), score(of.axes, asked))
    found = scoring_net(of.model, of.batches, of.loss, share=SHARE, **how)
    assert same(score(of.axes, found), score(of.axes, weighed(asked, of, SHARE).criterion))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_recipe_weighs_a_net_from_a_file_unless_told_not_to(tmp_path: Any) -> None:
    model, batches = handmade.small(), handmade.data(3, 12)
    x, file = batches[0][0][:1], str(tmp_path / "net.safetensors")
    save_scorer(file, misled())

    def against(output: Any, target: Any) -> Tensor:  # by which this net is worse than L1
        return -F.cross_entropy(output, target)

    def plan(**args: Any) -> Any:
        prune = Prune(keep={"macs": SHARE}, criterion="scoring_net", floor=0.0, args={"file": file, **args})
        return choose(model, x, prune, batches=batches, loss=against)[1]

    axes = trace(model, x)
    of = Task(model, axes, batches, against, ranked)
    asked = misled().criterion(model, axes)
    assert plan(weigh=False) == ranked(axes, score(axes, asked), SHARE)
    assert plan() == ranked(axes, score(axes, weighed(asked, of, SHARE).criterion), SHARE)
    assert plan() != plan(weigh=False)
    with pytest.raises(SecateurError, match="give true or false"):
        plan(weigh="yes")
