"""Lottery tickets: what a pruned network's weights are before it is trained again.

Shape legend: L entries of one layer's weight, S of them that survive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Keep, Plan
from secateur.surgery import masks_after, tensors
from secateur.surgery.fingerprint import lengths_of, real_slots, survivors


@dataclass(frozen=True)
class Layer:
    """One weight: `initial` and `fresh` (L,) two draws of its initialisation, `kept` (L,) which entries survive."""

    initial: Tensor
    fresh: Tensor
    kept: Tensor

    @property
    def own(self) -> Tensor:
        """The surviving initial values (S,)."""
        return self.initial[self.kept]


Draw = Callable[[Layer, torch.Generator], Tensor]
"""New values (S,) of the surviving entries."""


def rewind(layer: Layer, _: torch.Generator) -> Tensor:
    """The initial values: the ticket itself (Frankle and Carbin, 2019)."""
    return layer.own


def full_random(layer: Layer, _: torch.Generator) -> Tensor:
    """A fresh draw of the layer's initialisation."""
    return layer.fresh[layer.kept]


def sign(layer: Layer, _: torch.Generator) -> Tensor:
    """Preserved sign: |u| sign(w0), u a fresh draw."""
    return layer.fresh[layer.kept].abs() * layer.own.sign()


def distribution(layer: Layer, generator: torch.Generator) -> Tensor:
    """Preserved distribution: the surviving initial values in another order ("random_reshuffle" of Zhou et al., 2019)."""
    return layer.own[_order(layer.own, generator)]


def normal(layer: Layer, generator: torch.Generator) -> Tensor:
    """Preserved mean and deviation: normal values with those of the surviving initial ones."""
    own = layer.own
    if not len(own):
        return own
    return own.mean() + own.std(unbiased=False) * torch.randn(own.shape, generator=generator, dtype=own.dtype)


def absolute(layer: Layer, generator: torch.Generator) -> Tensor:
    """Preserved absolute value: |w0| with signs drawn evenly."""
    return layer.own.abs() * (2 * torch.randint(2, layer.own.shape, generator=generator) - 1)


def sign_distribution(layer: Layer, generator: torch.Generator) -> Tensor:
    """Signs stay, surviving sizes change places ("signed_reshuffle")."""
    return layer.own.abs()[_order(layer.own, generator)] * layer.own.sign()


def shuffled(layer: Layer, generator: torch.Generator) -> Tensor:
    """All initial values of the layer in another order, then those at surviving places ("random_reinit")."""
    return layer.initial[_order(layer.initial, generator)][layer.kept]


def sign_shuffled(layer: Layer, generator: torch.Generator) -> Tensor:
    """All sizes of the layer in another order, signs as they were ("signed_reinit")."""
    return (layer.initial.abs()[_order(layer.initial, generator)])[layer.kept] * layer.own.sign()


def sign_constant(layer: Layer, _: torch.Generator) -> Tensor:
    """The deviation of the whole layer with the initial signs ("signed_constant")."""
    return layer.initial.std(unbiased=False) * layer.own.sign()


def random_constant(layer: Layer, generator: torch.Generator) -> Tensor:
    """The deviation of the whole layer with the surviving signs in another order ("rand_signed_constant")."""
    return layer.initial.std(unbiased=False) * layer.own.sign()[_order(layer.own, generator)]


VARIANTS: dict[str, Draw] = {
    "rewind": rewind,
    "random": full_random,
    "sign": sign,
    "distribution": distribution,
    "absolute": absolute,
    "normal": normal,
    "sign_distribution": sign_distribution,
    "shuffled": shuffled,
    "sign_shuffled": sign_shuffled,
    "sign_constant": sign_constant,
    "random_constant": random_constant,
}
"""Name to definition. Late rewinding is "rewind" with the weights after some epochs as the initial ones."""


def ticket(initial: nn.Module, fresh: nn.Module, plan: Plan, variant: str = "rewind", *, seed: int = 0) -> nn.Module:
    """The pruned network of `plan`, ready to be trained: weights by `variant`, norms at 1 and 0, biases as initialised.

    `initial` holds the initial weights (of late rewinding: those after some epochs), `fresh` a second, independent draw of
    them: the same architecture built again. The plan may drop units or set weights to zero; survivors of a dropped unit's
    layer are the entries that the small network keeps. Weights are tensors of two dims and more; running statistics are those
    of a fresh network. The arguments do not change.
    Raises `SecateurError` for an unknown variant, and for networks without values or that the plan was not made for.
    """
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise SecateurError(f"tickets by {variant!r}", "no such variant", nearest(variant, list(VARIANTS)))
    _require(initial, fresh, plan, seed)
    generator = torch.Generator().manual_seed(seed)
    kept = kept_entries(plan, initial)
    source, other = dict(tensors(initial)), dict(tensors(fresh))
    full = Plan(plan.fingerprint).apply(initial)
    done: set[int] = set()
    with torch.no_grad():
        for name, tensor in tensors(full):
            if tensor.dim() < 2 or not isinstance(tensor, nn.Parameter) or id(tensor) in done:
                continue
            done.add(id(tensor))
            mask = kept.get(name, torch.ones(tensor.shape, dtype=torch.bool)).reshape(-1)
            layer = Layer(source[name].detach().cpu().reshape(-1), other[name].detach().cpu().reshape(-1), mask)
            values = torch.zeros_like(layer.initial)
            values[mask] = VARIANTS[variant](layer, generator).to(values)
            tensor.copy_(values.reshape(tensor.shape))
    small = plan.apply(full)
    _reset_norms(small)
    return small


def kept_entries(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """Name to True where an entry survives, in full shape, of every tensor that loses some.

    Raises `SecateurError` for plans that drop units in more than one step, or factor.
    """
    named = dict(tensors(model))
    keeps = [step for step in plan.steps if isinstance(step, Keep)]
    masked = Plan(plan.fingerprint, tuple(step for step in plan.steps if not isinstance(step, Keep)))
    if len(keeps) > 1 or (keeps and len(plan.steps) > 1):
        raise SecateurError(
            "the ticket of a plan", f"{len(plan.steps)} steps", "give a plan of one step on the initial network"
        )
    found = {name: torch.from_numpy(mask) for name, mask in masks_after(masked).items()}
    for step in keeps:
        shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
        for (name, dim), entries in survivors(real_slots(step), lengths_of(shapes)).items():
            line = torch.zeros(shapes[name][dim], dtype=torch.bool).index_fill(0, torch.from_numpy(entries), True)
            line = line.reshape([-1 if i == dim else 1 for i in range(len(shapes[name]))])
            found[name] = found.get(name, torch.ones(shapes[name], dtype=torch.bool)) & line
    return found


class ZerosStay:
    """A hook that keeps the zeros of a masked ticket: after each step what the plan set to zero is zero again."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        if not isinstance(plan, Plan):
            raise SecateurError("zeros that stay", f"a plan of type {type(plan).__name__}", "give the plan of the ticket")
        named, masks = dict(tensors(model)), masks_after(plan)
        for name, mask in masks.items():
            if name not in named or named[name].shape != mask.shape:
                found = f"{name!r} of {list(named[name].shape) if name in named else 'no shape'}"
                raise SecateurError(
                    "zeros that stay", f"{found} where the plan has {list(mask.shape)}", "give the ticket it made"
                )
        self._gone = [(named[name], ~torch.from_numpy(mask)) for name, mask in masks.items()]
        self._plan = plan

    def loss(self) -> float:
        """Nothing."""
        return 0.0

    def after_backward(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Zeros again."""
        with torch.no_grad():
            for tensor, gone in self._gone:
                tensor.masked_fill_(gone.to(tensor.device), 0)

    def plan(self) -> Plan:
        """The plan it was made for."""
        return self._plan

    def state_dict(self) -> dict[str, object]:
        """Nothing but the plan, which is given again."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Nothing to do."""


def _require(initial: nn.Module, fresh: nn.Module, plan: Plan, seed: int) -> None:
    """Raise `SecateurError` for what is no model of values, no plan of it, or no seed."""
    if not isinstance(plan, Plan):
        raise SecateurError("a ticket", f"a plan of type {type(plan).__name__}", "give a secateur Plan")
    if type(seed) is not int or not -(1 << 63) <= seed < 1 << 63:
        raise SecateurError(f"a ticket of seed {seed!r}"[:80], "no seed", "give a whole number of 64 bits")
    for model in (initial, fresh):
        if not isinstance(model, nn.Module):
            raise SecateurError("a ticket", f"a {type(model).__name__} in place of a model", "give a torch.nn.Module, built")
        plan.check(model)
        if any(tensor.is_meta for _, tensor in tensors(model)):
            raise SecateurError("a ticket", "weights without values (device meta)", "build the model on a real device")


def _order(values: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(values), generator=generator)


def _reset_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
            module.reset_parameters()
