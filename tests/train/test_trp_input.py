"""TRP and force regularisation with settings, weights and models that a user might hand them by mistake."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch
from torch import nn

from secateur import TRP, SecateurError
from secateur.core.factor import Product
from secateur.core.plan import factor
from secateur.surgery import fingerprint
from secateur.train import FitSettings, Force, TRPSettings, fit


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def steps(model: nn.Module, method: TRP, number: int = 2, *, lr: float = 0.05) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    method.attach(optimizer)
    dtype = next(model.parameters()).dtype
    for _ in range(number):
        (model(torch.randn(4, 3, 8, 8, dtype=dtype)).square().mean() + method.loss()).backward()
        method.after_backward()
        optimizer.step()
        method.after_step()
        optimizer.zero_grad()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


WRONG = {
    "energy as text": (lambda: TRP(net(), energy="0.9"), "share"),
    "energy as truth": (lambda: TRP(net(), energy=True), "share"),
    "no energy": (lambda: TRP(net(), energy=None), "share"),
    "nuclear as text": (lambda: TRP(net(), nuclear="x"), "strength"),
    "ranks that are no table": (lambda: TRP(net(), ranks=5), "ranks by layer"),
    "ranks in a list": (lambda: TRP(net(), ranks=["2"]), "ranks by layer"),
    "a switch as text": (lambda: TRP(net(), stem="no"), "true or false"),
    "a switch that is nothing": (lambda: TRP(net(), linear=None), "true or false"),
    "settings that are none": (lambda: TRP(net(), 3), "preset"),
    "one pattern as text": (lambda: TRP(net(), ignore="3"), "list"),
    "patterns of numbers": (lambda: TRP(net(), ignore=[3]), "list"),
    "no patterns": (lambda: TRP(net(), ignore=None), "list"),
    "no weights yet": (lambda: TRP(net().to("meta")), "no values"),
    "no optimizer": (lambda: TRP(net(), optimizer=3), "type int"),
    "another's optimizer": (lambda: TRP(net(), nuclear_by="decay", optimizer=sgd(net())), "none of"),
    "another's momentum": (lambda: TRP(net(), project_momentum=True).attach(sgd(net())), "none of"),
    "ranks by nothing": (lambda: TRP(net()).plan({}), "not one way"),
    "force by nothing": (lambda: Force(net()).plan({}), "not one way"),
    "a state of force": (lambda: TRP(net()).load_state_dict(Force(net()).state_dict()), "'last'"),
    "no state": (lambda: TRP(net()).load_state_dict(None), "NoneType"),
    "force as text": (lambda: Force(net(), "much"), "strength"),
    "force as truth": (lambda: Force(net(), True), "strength"),
    "force with a preset": (lambda: Force(net(), settings="paper"), "TRPSettings"),
    "force with a state of TRP": (lambda: Force(net()).load_state_dict(TRP(net()).state_dict()), "number of steps"),
    "force without a state": (lambda: Force(net()).load_state_dict({}), "number of steps"),
    "force on one pattern": (lambda: Force(net(), ignore="3"), "list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_one_sentence(case):
    ask, words = WRONG[case]
    with pytest.raises(SecateurError, match=words):
        ask()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_and_left_alone(value):
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = value
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(SecateurError, match=r"'3'.*not finite"):
        TRP(model)
    assert all(torch.equal(a, b) or a is model[3].weight for a, b in zip(model.parameters(), before, strict=True))
    assert int(model[3].weight.isfinite().sum()) == model[3].weight.numel() - 1


def test_training_that_diverges_under_truncation_says_so():
    model = net()
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))] * 12
    hook = TRP(model, every=1, linear=True, nuclear_by="decay")
    with pytest.raises(SecateurError, match="learning rate"):
        fit(model, data, FitSettings(epochs=1, lr=1e9, schedule="constant"), hooks=[hook])


@pytest.mark.parametrize("changes", [{}, {"format": "channel", "project_momentum": True}, {"nuclear_by": "decay"}])
def test_a_run_goes_on_in_another_precision(changes):
    model = net()
    method = TRP(model, energy=0.5, every=1, **changes)
    steps(model, method)
    state, weights = method.state_dict(), model.state_dict()
    wide = net().double()
    again = TRP(wide, energy=0.5, every=1, **changes)
    wide.load_state_dict(weights)
    again.load_state_dict(state)
    steps(wide, again)
    model.double()
    steps(model, method)
    for trained, hook in ((wide, again), (model, method)):
        assert hook.step == 4
        for layer in hook.layers:
            assert layer.weight.dtype == torch.float64
        assert all(bool(p.isfinite().all()) for p in trained.parameters())


def test_the_hook_follows_weights_that_are_assigned():
    model, other = net(), net(1)
    method = TRP(model, format="channel", energy=0.5, every=1, nuclear=0.01, project_momentum=True)
    model.load_state_dict(other.state_dict(), assign=True)
    model.requires_grad_(True)
    steps(model, method)
    assert [layer.weight for layer in method.layers] == [model[2].weight, model[3].weight]
    assert int(torch.linalg.matrix_rank(model[3].weight.detach().flatten(1).double(), rtol=1e-4)) < 40
    method = TRP(model, format="channel", energy=0.5, every=100)
    model[3].weight = nn.Parameter(torch.outer(torch.ones(64), torch.randn(576)).reshape(64, 64, 3, 3))
    assert method.plan({"energy": 0.99}).steps[0].products[-1] == Product("3", "channel", (1,))


@pytest.mark.parametrize("hook", [TRP, Force])
def test_a_layer_that_has_gone_is_named(hook):
    model = net()
    method = hook(model, every=1)
    cut = factor(fingerprint(model), [Product("3", "channel", (4,))])
    cut.apply_(model)
    with pytest.raises(SecateurError, match=r"layer '3'.*Sequential"):
        method.plan({"rank": 2})
    with pytest.raises(SecateurError, match=r"layer '3'.*anew"):
        method.after_backward()
    del model[3]
    with pytest.raises(SecateurError, match=r"layer '3'"):
        method.plan({"rank": 2})


@pytest.mark.parametrize("by", ["decay", "proximal"])
def test_frozen_layers_do_not_shrink(by):
    model = net()
    model[3].weight.requires_grad_(False)
    before = model[3].weight.detach().clone()
    loose = model[2].weight.detach().clone()
    method = TRP(model, energy=1.0, every=1, nuclear=0.05, nuclear_by=by)
    steps(model, method, 3, lr=0.5)
    torch.testing.assert_close(model[3].weight.norm(), before.norm(), rtol=1e-4, atol=0)
    assert float(model[2].weight.detach().norm()) < 0.9 * float(loose.norm())


def test_an_optimizer_that_nobody_reads_may_be_any():
    assert TRP(net(), optimizer=sgd(net())).optimizer is not None
    frozen = net().requires_grad_(False)
    assert TRP(frozen, project_momentum=True, optimizer=sgd(net())).optimizer is not None


def test_tables_of_any_kind_are_kept():
    method = TRP(net(), ranks=MappingProxyType({"3": 4}), deploy=MappingProxyType({"rank": 4}))
    state = method.state_dict()
    assert (state["settings"]["ranks"], state["settings"]["deploy"]) == ({"3": 4}, {"rank": 4})
    method.load_state_dict(state)


def test_a_checkpoint_of_other_settings_leaves_the_model_alone(tmp_path):
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))] * 3
    settings, path = FitSettings(epochs=1, lr=0.01), tmp_path / "checkpoint.pt"
    model = net()
    fit(model, data, settings, hooks=[TRP(model, every=2)], checkpoint=path)
    again = net(1)
    method = TRP(again, every=3)
    before = [p.detach().clone() for p in again.parameters()]
    with pytest.raises(SecateurError, match="every 2 where the hook has 3"):
        fit(again, data, settings, hooks=[method], checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), before, strict=True))


def test_force_settings_choose_layers():
    hook = Force(net(), settings=TRPSettings(format="channel", stem=True))
    assert [layer.name for layer in hook.layers] == ["0", "2", "3"]


class Reads(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.called = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(nn.functional.conv2d(self.one(x).relu(), self.two.weight, self.two.bias, padding=1).relu()).mean(
            (2, 3)
        )


@pytest.mark.parametrize("deploy", [{"rank": 2}, {"macs": 0.8}])
def test_a_layer_whose_weight_the_forward_reads_itself_stays_whole(deploy):
    model, x = Reads(), torch.randn(2, 3, 8, 8)
    for method in (TRP(model), Force(model, 1e-3)):
        plan = method.plan(deploy, example=x)
        assert [product.module for step in plan.steps for product in step.products] == ["called"]
        assert plan.apply(model)(x).shape == (2, 16)
