"""Many candidates judged in one pass: by stacked gates on one machine, or shared out among processes.

Shape legend: C candidates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import SecateurError
from secateur.core.plan import Keep, Plan
from secateur.core.protocols import Batches, Judge, JudgeMany, Loss
from secateur.core.running import call, device_of, pairs, size_of, to_device
from secateur.measure.forward import without_fastpath
from secateur.surgery import duplicate, gates, tensors


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """The number of this process and how many `torchrun` started; their group is made here, and closed once all are through."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_available() and dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
    elif world == 1:
        yield 0, 1
    else:
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # one trains while the others wait
        try:
            yield dist.get_rank(), world
            dist.barrier()  # one that ended early would take down connections others still use
        finally:
            dist.destroy_process_group()


def across(judge: Judge) -> JudgeMany:
    """A judge of several plans whose processes take turns: of P processes, number r judges plans r, r + P, ...

    Every process runs the same search (`torchrun`) and hears the same losses, which are those of `judge`, bit for bit.
    Without a process group, or with one process, all are judged here. Where a judge fails on one process it fails on all.
    """

    def many(plans: Sequence[Plan]) -> list[float]:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return [float(judge(plan)) for plan in plans]
        rank, world = dist.get_rank(), dist.get_world_size()
        mine: dict[int, float] | str
        try:
            mine = {place: float(judge(plans[place])) for place in range(rank, len(plans), world)}
        except Exception as error:  # the others wait for an answer
            mine = f"{type(error).__name__}: {error}"
        told: list[Any] = [None] * world
        dist.all_gather_object(told, mine)
        if failed := [f"process {number}: {answer}" for number, answer in enumerate(told) if isinstance(answer, str)]:
            raise SecateurError("candidates judged by several processes", failed[0].rstrip("."), "see its output")
        losses = {place: loss for answer in told for place, loss in answer.items()}
        return [losses[place] for place in range(len(plans))]

    return many


def stacked(
    model: nn.Module, batches: Batches, loss: Loss, *, settle: Batches | None = None, chunk: int = 8, otherwise: Judge
) -> JudgeMany:
    """A judge of several plans that runs `chunk` of them at once: one forward with C gates on every weight that is read.

    A loss is the mean of ``loss(output, target)`` over `batches`, each batch counting by its size, as
    `previewing` gives it to rounding. `settle`: batches that batch norms are re-estimated on, for each candidate apart.
    Plans that gates alone cannot show (several steps, products, norms over the units) are left to `otherwise`.
    C times the activations are held. It pays where a forward does not fill the machine: on a GPU, or for small batches.
    Raises `SecateurError` for a `chunk` below 1, and for a forward or a loss that cannot be stacked, as that of an LSTM.
    """
    if type(chunk) is not int or chunk < 1:
        raise SecateurError(f"{chunk!r} candidates judged at once", "no such number", "give a whole number of at least 1")

    def some(plans: Sequence[Plan]) -> list[float]:
        with torch.no_grad():
            return _Stack(model, plans).losses(batches, loss, settle)

    def many(plans: Sequence[Plan]) -> list[float]:
        found: dict[int, float] = {}
        plain = [place for place, plan in enumerate(plans) if _gated(plan)]
        for start in range(0, len(plain), chunk):
            places = plain[start : start + chunk]
            found |= dict(zip(places, some([plans[place] for place in places]), strict=True))
        return [found[place] if place in found else float(otherwise(plan)) for place, plan in enumerate(plans)]

    return many


def _gated(plan: Plan) -> bool:
    """Do gates on weights alone compute what the plan would?"""
    steps = plan.steps
    if not steps or len(steps) > 1 or not isinstance(steps[0], Keep):
        return not steps
    return all(cut.exact for cut in steps[0].cuts if len(cut.kept) < cut.units)


class _Stack:
    """One model under several plans."""

    def __init__(self, model: nn.Module, plans: Sequence[Plan]) -> None:
        self.model = duplicate(model, {id(p): p for p in model.parameters()}).eval()
        self.device, self.count = device_of(model), len(plans)
        named = dict(tensors(self.model))
        found = [gates(plan, model) for plan in plans]
        names = sorted({name for gate in found for name in gate})
        self.values: dict[str, Tensor] = {}
        for name in names:
            whole = torch.ones_like(named[name])
            self.values[name] = torch.stack([named[name] * gate.get(name, whole).to(whole) for gate in found])
        norms = {name: module for name, module in self.model.named_modules() if isinstance(module, _BatchNorm)}
        self.norms = {name: norm for name, norm in norms.items() if norm.running_mean is not None}

    def losses(self, batches: Batches, loss: Loss, settle: Batches | None) -> list[float]:
        """Mean losses over `batches`, after `settle`."""
        if settle is not None and self.norms:
            self.settle(settle)
        total, seen = torch.zeros(self.count, dtype=torch.float64), 0
        for x, target in pairs(batches):
            x, target = to_device(x, self.device), to_device(target, self.device)

            def one(values: dict[str, Tensor], x: Any = x, target: Any = target) -> Tensor:
                return loss(_run(self.model, values, x), target)

            size, found = size_of(target), self.each(one)
            if not isinstance(found, Tensor) or found.shape != total.shape:
                do = "give a loss(output, target) that returns one number"
                raise SecateurError("candidates judged at once", f"a loss of {_described(found)}", do)
            total += found.double().cpu() * size
            seen += size
        if not seen:
            raise SecateurError("candidates judged at once", "no batch", "give at least one (input, target) pair")
        return [float(value) for value in total / seen]

    def each(self, run: Callable[[dict[str, Tensor]], Any]) -> Any:
        """What `run` returns for the tensors of each candidate, all in one pass. Raises `SecateurError` where it cannot be."""
        if not self.values:  # whole models alone: nothing tells them apart
            return torch.stack([found] * self.count) if isinstance(found := run({}), Tensor) else found
        try:
            with without_fastpath(), sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be stacked
                return vmap(run, randomness="same")(self.values)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            words = (str(error).strip().splitlines() or ["no message"])[0]
            found = f"{type(error).__name__}: {words.rstrip('. ')}"
            do = "judge one at a time, or give data and a loss that the model takes under torch.func.vmap"
            raise SecateurError("candidates judged at once", found, do) from error

    def settle(self, batches: Batches) -> None:
        """Cumulative means of batch statistics, for each candidate apart, as `repair.batchnorm` takes them."""
        for name, norm in self.norms.items():
            norm.training = True
            for key, start in (("running_mean", 0.0), ("running_var", 1.0)):
                old: Tensor = getattr(norm, key)
                self.values[f"{name}.{key}"] = torch.full((self.count, *old.shape), start).to(old)
        number = 0
        for number, (x, _) in enumerate(pairs(batches), 1):
            for norm in self.norms.values():
                norm.momentum = 1 / number
            inputs = to_device(x, self.device)

            def one(values: dict[str, Tensor], x: Any = inputs) -> Any:
                return _run(self.model, values, x)

            self.each(one)
        for norm in self.norms.values():
            norm.training = False
        if not number:
            raise SecateurError("batch norm re-estimated", "no batch", "give data that can be iterated anew for every pass")


def _described(value: Any) -> str:
    return f"shape {list(value.shape[1:])}" if isinstance(value, Tensor) else f"type {type(value).__name__}"


def _run(model: nn.Module, values: dict[str, Tensor], x: Any) -> Any:
    """`model` with some of its tensors replaced, on one input."""
    bound: Any = lambda *args, **kwargs: functional_call(model, values, args, kwargs, tie_weights=False)  # noqa: E731
    return call(bound, x)
