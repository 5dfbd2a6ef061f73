"""Modules that hold more than tensors and children, or compute in another precision: copied, traced and cut like others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import SecateurError, trace
from secateur.core.plan import Plan
from secateur.testing import awake, distance, laws, random_plan


class Two(nn.Module):
    """Two linear layers; `hold` puts something on the model, `between` is what happens to the 8 units in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.hold()

    def hold(self) -> None: ...

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


class OneTable(Two):
    """A layer writes into a table that the network reads: both have to hold the same table in a copy."""

    def hold(self) -> None:
        self.seen: dict[str, Tensor] = {}
        self.a.seen = self.seen
        self.a.register_forward_hook(lambda module, _, out: module.seen.update(a=out))

    def between(self, x: Tensor) -> Tensor:
        return self.seen["a"].tanh() + x


class Handle(Two):
    """A handle knows the table of hooks that its hook is in."""

    def hold(self) -> None:
        self.handle = self.a.register_forward_pre_hook(lambda _, args: (args[0] * 2,))


class Itself(Two):
    def hold(self) -> None:
        self.table: dict[str, Any] = {"model": self}
        self.table["table"] = self.table


@dataclass(frozen=True)
class Sizes:
    hidden: int = 8


class Frozen(Two):
    def hold(self) -> None:
        self.sizes = Sizes()

    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, self.sizes.hidden).relu()


class Listed(Two):
    """Parameters are known to the forward by a list, a table and an attribute beside their modules."""

    def hold(self) -> None:
        self.table, self.list = {"weight": self.a.weight}, [self.a.bias]
        object.__setattr__(self, "bias", self.a.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.b((x @ self.table["weight"].t() + self.list[0] - self.bias / 2).relu())


class Scripted(Two):
    def hold(self) -> None:
        self.b = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(8, 4), nn.Tanh())), nn.Linear(4, 5), nn.Linear(5, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", [OneTable, Handle, Itself, Frozen, Listed, Scripted])
def test_laws(kind: type[Two]) -> None:
    def build() -> nn.Module:
        return awake(kind().double())

    assert laws(build, torch.randn(4, 6, dtype=torch.float64)).free


def test_a_hook_of_a_copy_can_be_removed() -> None:
    model, x = awake(Handle()), torch.randn(4, 6)
    small = random_plan(trace(model, x)).apply(model)
    hooked = small(x)
    small.handle.remove()
    assert not torch.equal(small(x), hooked)
    assert torch.equal(small(2 * x), hooked)


def test_outputs_kept_with_a_gradient_are_no_hindrance() -> None:
    model, x = awake(OneTable()), torch.randn(4, 6)
    model(x).sum().backward()
    axes = trace(model, x)
    plan = random_plan(axes)
    assert distance(plan.preview(model), plan.apply(model), x) < 1e-5
    assert distance(model, Plan(axes.fingerprint).apply(model), x) == 0


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: trace(lazy(), torch.zeros(2, 6)), "LazyLinear.*run the model once"),
        (lambda: Plan({}).apply(lazy()), "LazyLinear.*run the model once"),
        (lambda: trace(torch.jit.script(Two()), torch.zeros(2, 6)), "a scripted module"),
    ],
)
def test_what_has_no_shapes_or_no_code_is_one_sentence(ask: Callable[[], Any], words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        ask()


class Halved(nn.Module):
    """Convolutions under autocast inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.b(self.a(x).relu())
        return self.c(y.float().mean((2, 3)))


def test_autocast_in_the_forward_and_around_the_trace() -> None:
    x = torch.randn(2, 3, 8, 8)
    inside = trace(Halved(), x)
    assert {axis.name for axis in inside.free} == {"a", "b"}
    with torch.autocast("cpu", torch.bfloat16):
        assert trace(Halved(), x) == inside


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(*sizes, 3, dtype=torch.complex128) for sizes in ((3, 8), (8, 6)))
        self.c = nn.Linear(6, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(torch.complex(x, x / 2))).abs().mean((2, 3)))


def test_complex_convolutions() -> None:
    torch.manual_seed(0)
    model, x = Complex(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    axes = trace(model, x)
    assert {"a", "b"} <= {axis.name for axis in axes.free}
    plan = random_plan(axes)
    assert distance(plan.preview(model), plan.apply(model), x) < 1e-12


def test_weights_stay_in_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1))
    model.to(memory_format=torch.channels_last)
    small = random_plan(trace(model, torch.zeros(1, 3, 9, 9))).apply(model)
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in (small[0], small[2]))


def test_a_module_that_is_part_of_itself_is_refused() -> None:
    model = Two()
    model.a.back = model
    with pytest.raises(SecateurError, match="module tree"):
        trace(model, torch.zeros(2, 6))
