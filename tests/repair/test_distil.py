"""Repair by distillation: what changes, what stays, and that the small network comes closer to the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import TRP, allocate, compress, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.recipes import Settings, schema, zoo
from secateur.train import sparse


def images(seed: int, batches: int = 3) -> list[tuple[Tensor, None]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 1, 8, 8, generator=generator), None) for _ in range(batches)]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = zoo.digits_resnet(blocks=1)
    repair.batchnorm(model, model, images(9))
    return model.eval()


def half(model: nn.Module) -> Plan:
    axes = trace(model, images(0)[0][0])
    return allocate.budget(axes, score(axes, criteria.l2(model)), {"macs": 0.5})


def apart(one: nn.Module, two: nn.Module) -> float:
    with torch.no_grad():
        pairs = [(one.eval()(x), two.eval()(x)) for x, _ in images(5)]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))


def low_rank(model: nn.Module) -> Plan:
    return TRP(model, energy=0.3).plan()


@pytest.mark.parametrize("plan_of", [half, low_rank], ids=["kept units", "products"])
def test_outputs_come_closer_on_inputs_it_has_not_seen(plan_of) -> None:  # type: ignore[no-untyped-def]
    model = network()
    small = plan_of(model).apply(model)
    repair.batchnorm(model, small, images(1))
    was = apart(small, model)
    repair.distil(model, small, images(1, 8), steps=60, lr=5e-3)
    assert apart(small, model) < 0.4 * was


def test_masked_weights_stay_zero() -> None:
    model = network()
    plan, small = sparse.obs(model, images(1), keep=0.3)
    zeros = {name: value == 0 for name, value in small.named_parameters() if value.dim() > 1}
    was = apart(small, model)
    repair.distil(model, small, images(1), steps=30)
    assert all(not value[zeros[name]].any() for name, value in small.named_parameters() if name in zeros)
    assert apart(small, model) < was
    plan.check(model)


def test_the_original_modes_randomness_and_frozen_weights_are_left_alone() -> None:
    model = network()
    small = half(model).apply(model).train()
    small.get_submodule("layer2").eval()
    small.get_parameter("conv1.weight").requires_grad_(requires_grad=False)
    modes = [module.training for module in small.modules()]
    original, frozen = deepcopy(model.state_dict()), small.get_parameter("conv1.weight").clone()
    random = torch.get_rng_state()
    repair.distil(model, small, images(1), steps=2)
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in small.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(frozen, small.get_parameter("conv1.weight"))
    assert all(p.grad is None for net in (model, small) for p in net.parameters())


def test_no_step_changes_nothing_and_a_batch_is_seen_once_per_step() -> None:
    model = network()
    small = half(model).apply(model)
    old = deepcopy(small.state_dict())
    repair.distil(model, small, images(1), steps=0)
    assert all(torch.equal(value, old[name]) for name, value in small.state_dict().items())
    drawn = 0

    class Counted(list[tuple[Tensor, None]]):
        def __iter__(self) -> Iterator[tuple[Tensor, None]]:
            nonlocal drawn
            for batch in super().__iter__():
                drawn += 1
                yield batch

    repair.distil(model, small, Counted(images(1)), steps=5, limit=2)
    assert drawn == 5


@pytest.mark.parametrize(("batches", "words"), [([], "no batch"), ([(torch.full((4, 1, 8, 8), torch.nan), None)], "finite")])
def test_a_failure_puts_the_weights_back(batches: list[tuple[Tensor, None]], words: str) -> None:
    model = network()
    small = half(model).apply(model)
    old = deepcopy(small.state_dict())
    with pytest.raises(SecateurError, match=words):
        repair.distil(model, small, batches, steps=3)
    assert all(torch.equal(value, old[name]) for name, value in small.state_dict().items())


@dataclass
class Named:
    logits: Tensor
    hidden: Tensor | None = None


@pytest.mark.parametrize("wrap", [Named, lambda y: (y, None), lambda y: {"y": [y], "n": 3}, torch.fft.fft])
def test_outputs_of_any_kind(wrap: Callable[[Tensor], Any]) -> None:
    model = Wrapped(network(), wrap)
    small = half(model).apply(model)
    was = apart(small.inner, model.inner)
    repair.distil(model, small, images(1), steps=20)
    assert apart(small.inner, model.inner) < was


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.inner(x))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None: ...


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(requires_grad=False)


REFUSED = {
    "classes": (lambda m: Wrapped(m, lambda y: y.argmax(1)), {}, "no number in the output"),
    "nothing": (lambda m: Wrapped(m, lambda y: None), {}, "no number in the output"),
    "no gradient": (lambda m: Wrapped(nn.Conv2d(1, 2, 3), Tensor.detach), {}, "without a gradient"),
    "frozen": (frozen, {}, "no weight that is trained"),
    "steps": (None, {"steps": -1}, "steps=-1"),
    "parts of steps": (None, {"steps": 2.5}, "steps=2.5"),
    "precision": (None, {"precision": "bf32"}, "precision='bf32'"),
    "rate": (None, {"lr": float("nan")}, "lr=nan"),
    "rate in words": (None, {"lr": "1e-3"}, "lr='1e-3'"),
    "no pairs": (None, {"batches": [torch.zeros(2, 1, 8, 8)]}, "no pair"),
    "no batches": (None, {"batches": None}, "NoneType"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_distilled_is_one_sentence(case: str) -> None:
    change, given, words = REFUSED[case]
    model = (change or (lambda m: m))(network())
    small = deepcopy(model)
    old = deepcopy(small.state_dict())
    with pytest.raises(SecateurError, match=words):
        repair.distil(model, small, **{"batches": images(1), "steps": 5, **given})
    assert all(torch.equal(value, old[name]) for name, value in small.state_dict().items() if isinstance(value, Tensor))


def test_the_loss_is_the_relative_error_of_output_and_blocks() -> None:
    """One step of an optimizer does not tell; the gradient of one batch does, against a sum written out by hand."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)).double()
    after = deepcopy(before)
    with torch.no_grad():
        for value in after.parameters():
            value += 0.1 * torch.randn_like(value)
    x = torch.randn(5, 3, dtype=torch.float64)
    seen = {}
    handle = after[0][0].weight.register_hook(lambda grad: seen.update(grad=grad.clone()))
    expected = deepcopy(after)
    repair.distil(before, after, [(x, None)], steps=1)
    handle.remove()

    def relative(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().sum() / b.square().sum()

    loss = relative(expected(x), before(x).detach()) + relative(expected[0](x), before[0](x).detach())
    loss.backward()
    assert torch.allclose(seen["grad"], expected[0][0].weight.grad, rtol=1e-9)


def test_a_recipe_says_how_many_steps() -> None:
    model = network()
    x = images(0)[0][0]
    batches = [(x, torch.zeros(16, dtype=torch.long))]
    ends = []
    for steps in (1, 20):
        section = schema.Repair(name="batchnorm+distil", batches=1, steps=steps, lr=5e-3)
        settings = Settings(prune=schema.Prune(criterion="l2"), repair=section)
        small, _ = compress(model, x[:1], batches, keep={"macs": 0.6}, settings=settings)
        ends.append(apart(small, model))
    assert ends[1] < ends[0]
