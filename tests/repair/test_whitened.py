"""Products fitted to data: the least error of responses, against numpy and against all other products of the rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secateur import Plan, Product, SecateurError, lowrank, repair, trace
from secateur.core.plan import factor
from secateur.linalg import patch_covariance
from secateur.surgery import fingerprint

FORMS = {"channel": (3,), "spatial": (4,), "tucker2": (3, 4)}


def correlated(count: int = 4, size: int = 9) -> list[tuple[torch.Tensor, None]]:
    """Inputs whose channels lean on few directions, with a mean."""
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(5, 5, generator=generator) * torch.tensor([3.0, 1.0, 0.3, 0.1, 0.03])[:, None]
    noise = [torch.randn(3, size, size, 5, generator=generator) @ mix + torch.arange(5.0) for _ in range(count)]
    return [(x.permute(0, 3, 1, 2).contiguous(), None) for x in noise]


def model(bias: bool = True, **changes) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(5, 7, **{"kernel_size": 3, "padding": 1, "bias": bias, **changes}))


def error(one: nn.Module, two: nn.Module, batches) -> float:
    with torch.no_grad():
        return float(sum((one(x).double() - two(x).double()).square().sum() for x, _ in batches))


def products(net: nn.Module, form: str, ranks) -> Plan:
    return factor(fingerprint(net), [Product("0", form, ranks)])


@pytest.mark.parametrize(
    "changes", [{}, {"stride": 2}, {"kernel_size": (3, 1), "padding": (1, 0)}, {"padding_mode": "reflect"}]
)
@pytest.mark.parametrize("form", FORMS)
def test_responses_change_less_than_with_the_weights_own_product(form, changes):
    net, data = model(**changes), correlated()
    plan = products(net, form, tuple(min(r, 3) for r in FORMS[form]))
    plain, fitted = plan.apply(net), plan.apply(net)
    repair.whitened(net, fitted, data, plan=plan)
    assert error(net, fitted, data) < 0.7 * error(net, plain, data)
    ours = error(net, fitted, data)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        last = fitted[0][-1]
        for _ in range(5):
            push = 1e-2 * torch.randn(last.weight.shape, generator=generator)
            last.weight.add_(push)
            assert error(net, fitted, data) > ours, "the last layer is optimal given the others"
            last.weight.sub_(push)


def test_channel_products_are_the_principal_components_of_the_responses():
    """Zhang et al., 2016: y' = U U^T (y - mean) + mean, by numpy on the responses themselves."""
    net, data = model(), correlated()
    plan = products(net, "channel", (3,))
    small = plan.apply(net)
    repair.whitened(net, small, data, plan=plan)
    with torch.no_grad():
        y = np.concatenate([net(x).permute(0, 2, 3, 1).reshape(-1, 7).double().numpy() for x, _ in data])
        z = np.concatenate([small(x).permute(0, 2, 3, 1).reshape(-1, 7).double().numpy() for x, _ in data])
    mean = y.mean(0)
    u = np.linalg.eigh(np.cov(y.T, bias=True))[1][:, -3:]
    assert np.abs((y - mean) @ u @ u.T + mean - z).max() < 1e-3


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_spatial_product_of_a_column_kernel_is_the_optimum(rank):
    """With one column both formats are the same set of maps, and response PCA has the least error among them."""
    net, data = model(kernel_size=(3, 1), padding=(1, 0)), correlated()
    errors = []
    for form in ("channel", "spatial"):
        plan = products(net, form, (rank,))
        small = plan.apply(net)
        repair.whitened(net, small, data, plan=plan)
        errors.append(error(net, small, data))
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_without_a_bias_the_mean_goes_into_the_batch_norm_behind():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(5, 7, 3, bias=False), nn.BatchNorm2d(7)).eval()
    with torch.no_grad():
        net[1].running_mean.copy_(torch.randn(7))
    biased = nn.Sequential(nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7)).eval()
    biased.load_state_dict({**net.state_dict(), "0.bias": torch.zeros(7)})
    data = correlated()
    plans = [products(net, "spatial", (4,)), products(biased, "spatial", (4,))]
    small = [plan.apply(each) for plan, each in zip(plans, (net, biased), strict=True)]
    for plan, one, two in zip(plans, (net, biased), small, strict=True):
        repair.whitened(one, two, data, plan=plan)
    with torch.no_grad():
        assert (small[0](data[0][0]) - small[1](data[0][0])).abs().max() < 1e-4
    bare = model(bias=False)
    plan = products(bare, "spatial", (4,))
    fitted, plain = plan.apply(bare), plan.apply(bare)
    repair.whitened(bare, fitted, data, plan=plan)
    assert error(bare, fitted, data) < error(bare, plain, data), "raw moments, with no place for a constant"


@pytest.mark.parametrize("bias", [True, False])
def test_set_twice_is_set_once(bias):
    """Values follow from the network before and the data alone, constants too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double()
    data = [(torch.randn(40, 3, 4, 4, dtype=torch.float64) + 1, None) for _ in range(2)]
    plan = factor(fingerprint(model), [Product("0", "channel", (2,))])
    small = plan.apply(model.eval())
    repair.whitened(model, small, data, plan=plan)
    once = {name: value.clone() for name, value in small.state_dict().items()}
    repair.whitened(model, small, data, plan=plan)
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, once[name], rtol=1e-12, atol=1e-12)


def test_linear_layers_and_full_ranks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6))
    data = [(x.permute(0, 2, 3, 1).reshape(-1, 5), None) for x, _ in correlated()]
    plan = products(net, "linear", (2,))
    plain, fitted = plan.apply(net), plan.apply(net)
    repair.whitened(net, fitted, data, plan=plan)
    assert error(net, fitted, data) < 0.5 * error(net, plain, data)
    for form, ranks in (("channel", (7,)), ("spatial", (15,)), ("tucker2", (5, 7))):
        conv = model()
        plan = products(conv, form, ranks)
        whole = plan.apply(conv)
        repair.whitened(conv, whole, correlated(), plan=plan)
        x = correlated()[0][0]
        assert (whole(x) - conv(x)).abs().max() < 1e-2 * conv(x).abs().max()


def test_covariances_of_columns_and_points_are_means_over_taps():
    x = np.random.default_rng(0).normal(size=(50, 2, 3, 2))
    covariance = torch.from_numpy(np.einsum("nahw,nbij->ahwbij", x, x).reshape(12, 12) / 50)
    column = sum(np.einsum("nah,nbi->ahbi", x[..., w], x[..., w]).reshape(6, 6) / 50 for w in range(2)) / 2
    assert np.abs(patch_covariance(covariance, (3, 2), "column").numpy() - column).max() < 1e-12
    point = sum(x[:, :, h, w].T @ x[:, :, h, w] / 50 for h in range(3) for w in range(2)) / 6
    assert np.abs(patch_covariance(covariance, (3, 2), "point").numpy() - point).max() < 1e-12


def test_other_plans_and_other_layers():
    net, data = model(), correlated()
    axes = trace(nn.Sequential(nn.Conv2d(5, 7, 3), nn.Conv2d(7, 2, 3)), torch.zeros(1, 5, 9, 9))
    with pytest.raises(SecateurError, match="not one factor step"):
        repair.whitened(net, net, data, plan=axes.plan({"0": [0, 1]}))
    plan = products(net, "decouple", (2,))
    small = plan.apply(net)
    weights = [layer.weight.clone() for layer in small[0]]
    repair.whitened(net, small, data, plan=plan)
    assert all(torch.equal(layer.weight, value) for layer, value in zip(small[0], weights, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_products_multiplied_out_compute_the_same_in_the_dense_network(form, bias):
    net, batches = nn.Sequential(*model(bias), nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)), correlated()
    plan = products(net, form, FORMS[form])
    small = plan.apply(net)
    repair.whitened(net, small, batches, plan=plan)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    lowrank.merge_(net, small, plan)
    assert {name: value.shape for name, value in net.state_dict().items()} == shapes
    assert error(net.eval(), small.eval(), batches) < 1e-8
    again = plan.apply(net)  # of that rank already: decomposing it once more loses nothing
    assert error(again.eval(), small, batches) < 1e-7


def test_a_linear_product_is_multiplied_out_too():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    plan = factor(fingerprint(net), [Product("0", "linear", (2,))])
    small = plan.apply(net)
    lowrank.merge_(net, small, plan)
    assert error(net, small, [(torch.randn(7, 6), None)]) < 1e-10
    assert int(torch.linalg.matrix_rank(net[0].weight.detach())) == 2


def test_multiplying_out_needs_the_factor_step():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    plan = trace(net, torch.randn(2, 6)).plan({"0": [0, 1]})
    with pytest.raises(SecateurError, match="not one factor step"):
        lowrank.merge_(net, plan.apply(net), plan)


def test_networks_of_other_plans_are_refused_and_left_alone():
    net, data = nn.Sequential(*model(), nn.Conv2d(7, 8, 1)), correlated()
    plan = products(net, "spatial", (4,))
    small = plan.apply(net)
    axes = trace(small, data[0][0])
    cut = axes.plan({"0.1": [0, 1]}).apply(small)
    ranks = axes.plan({"0.0": [0, 1]}).apply(small)
    for other in (net, products(net, "channel", (3,)).apply(net), cut, ranks, nn.Linear(3, 3)):
        for change, left in ((lowrank.merge_, net), (lambda a, b, p: repair.whitened(a, b, data, plan=p), other)):
            if other is ranks and change is lowrank.merge_:
                continue  # fewer ranks than the plan says can be multiplied out as well
            before = {name: value.clone() for name, value in left.state_dict().items()}
            with pytest.raises(SecateurError, match="made by this plan"):
                change(net, other, plan)
            assert all(torch.equal(value, before[name]) for name, value in left.state_dict().items())
    lowrank.merge_(net, ranks, plan)
    assert error(net, ranks, data) < 1e-6


def test_a_plan_without_products_changes_nothing():
    net, data = model(), correlated()
    plan = Plan(fingerprint(net))
    small = plan.apply(net)
    repair.whitened(net, small, data, plan=plan)
    assert error(net, small, data) == 0
    with torch.no_grad():
        small[0].bias.add_(1)
    lowrank.merge_(net, small, plan)
    assert error(net, small, data) == 0


class Head(nn.Module):
    """A second head that only training looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aside = nn.Conv2d(5, 7, 3), nn.Conv2d(5, 7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.aside(x) if self.training else self.main(x)


def test_layers_the_data_never_reach_stay_as_they_are():
    torch.manual_seed(0)
    net, data = Head(), correlated()
    plan = factor(fingerprint(net), [Product(name, "channel", (3,)) for name in ("main", "aside")])
    small, plain = plan.apply(net), plan.apply(net)
    repair.whitened(net, small, data, plan=plan)
    assert all(torch.equal(a, b) for a, b in zip(small.aside.parameters(), plain.aside.parameters(), strict=True))
    assert error(net.eval(), small.eval(), data) < 0.7 * error(net, plain.eval(), data)
