"""The linear layer of GPT-2, whose weight is (inputs, outputs): everything that reads matrices treats it like torch's."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from secateur import criteria, repair, score, trace
from secateur.train import sparse
from secateur.train.sparse.select import erk

pytest.importorskip("transformers")
from transformers.pytorch_utils import Conv1D


def twins() -> tuple[nn.Sequential, nn.Sequential]:
    """One network of torch's linear layers, and the same of transformers' Conv1D."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    turned = nn.Sequential(Conv1D(16, 6), nn.ReLU(), Conv1D(12, 16), nn.ReLU(), Conv1D(5, 12)).double()
    same_(turned, plain)
    return plain, turned


def same_(turned: nn.Sequential, plain: nn.Sequential) -> None:
    with torch.no_grad():
        for i in (0, 2, 4):
            turned[i].weight.copy_(plain[i].weight.T)
            turned[i].bias.copy_(plain[i].bias)


def agree(turned: nn.Sequential, plain: nn.Sequential) -> None:
    for i in (0, 2, 4):
        torch.testing.assert_close(turned[i].weight.T.contiguous(), plain[i].weight.contiguous())
        torch.testing.assert_close(turned[i].bias, plain[i].bias)


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    return [
        (
            torch.randn(20, 3, 6, dtype=torch.float64, generator=generator) @ mix,
            torch.randint(0, 5, (20, 3), generator=generator),
        )
        for _ in range(4)
    ]


@pytest.mark.parametrize("fixed", [repair.least_squares, repair.compensation, repair.mean_bias])
def test_a_repair_is_that_of_the_twin(fixed) -> None:
    made = []
    for net in twins():
        axes = trace(net, data()[0][0])
        plan = axes.plan({axis.name: range(0, axis.units, 2) for axis in axes.free})
        small = plan.apply(net)
        bare = deepcopy(small)
        fixed(net, small, data(), plan=plan)
        made.append(small)
        assert (small[2].weight != bare[2].weight).any() or (small[2].bias != bare[2].bias).any()
    agree(made[1], made[0])


@pytest.mark.parametrize("name", ["cap", "elimination", "lasso", "thinet", "chip", "apoz"])
def test_scores_by_features_are_those_of_the_twin(name: str) -> None:
    found = []
    for net in twins():
        axes = trace(net, data()[0][0])
        rule = getattr(criteria, name)(net, data())
        found.append([score(axes, rule)[axis.name] for axis in axes.free])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "name", ["l1", "l2", "lamp", "fpgm", "rfp", "nisp", "group_fisher", "obd", "taylor", "snip", "per_cost"]
)
def test_scores_of_weights_are_those_of_the_twin(name: str) -> None:
    found = []
    for net in twins():
        axes = trace(net, data()[0][0])
        batches = [(x, torch.zeros_like(net(x))) for x, _ in data()]
        rule = {
            "nisp": lambda net=net, axes=axes: criteria.nisp(net, axes),
            "per_cost": lambda net=net, axes=axes: criteria.per_cost(axes, criteria.l2(net)),
        }.get(name)
        if rule is None:
            given = (batches, nn.functional.mse_loss) if name in ("group_fisher", "obd", "taylor", "snip") else ()
            rule = lambda net=net, given=given: getattr(criteria, name)(net, *given)  # noqa: E731
        found.append([values for _, values in sorted(score(axes, rule()).items())])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_obs_prunes_both_alike() -> None:
    (plan, small), (other, turned) = (sparse.obs(net, data(), keep=0.3) for net in twins())
    agree(turned, small)
    assert plan.facts(small, data()[0][0]).sparse_macs == other.facts(turned, data()[0][0]).sparse_macs


@pytest.mark.parametrize("layout", [sparse.Layout("uniform", pattern="2:4"), sparse.Layout("erk")])
def test_obs_takes_its_patterns_along_the_inputs(layout) -> None:
    (_, small), (_, turned) = (sparse.obs(net, data(), keep=0.5, layout=layout) for net in twins())
    agree(turned, small)
    left = [layer.weight != 0 for layer in (small[0], small[2], small[4])]
    if layout.pattern:
        assert left[0].all()  # six inputs are no groups of four
        assert all((kept.unflatten(1, (-1, 4)).sum(2) == 2).all() for kept in left[1:])
    else:
        shares = erk({str(i): tuple(kept.shape) for i, kept in enumerate(left)}, 0.5)
        assert [int(kept.sum()) for kept in left] == [round(shares[str(i)] * kept.numel()) for i, kept in enumerate(left)]
