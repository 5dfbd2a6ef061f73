"""A writer and the reader of what it writes as one linear map of the changes of both.

Shape legend: O outputs of the reader, H units between writer and reader, D inputs of one output, M rows (samples times
positions).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.keep import Keep
from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.core.running import call, device_of, evaluating, fits, to_device
from secateur.measure.layers import as_weight, is_matrix, matrix, outputs, rows
from secateur.measure.moments import drawn
from secateur.measure.observe import outlets
from secateur.repair.linked import Linked

Changes = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weight and constant of the writer (H, D), (H,), weight and constant of the reader (O, D), (O,)."""


@dataclass(frozen=True, eq=False)
class Writer:
    """A layer that alone writes what a reader reads, and the batch norm with running statistics that takes its output."""

    name: str
    layer: nn.Module
    norm: _BatchNorm | None


@dataclass(frozen=True, eq=False)
class Pair:
    """A writer and its reader."""

    writer: Writer
    reader: Linked

    def _places(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """(bias, running mean) of writer and reader: where a constant is; (None, None) where none can be."""
        norms = (self.writer.norm, None if self.reader.norm is None else self.reader.norm[1])
        layers = (self.writer.layer, self.reader.layer)
        places = [(cast(Tensor | None, getattr(layer, "bias", None)), norm) for layer, norm in zip(layers, norms, strict=True)]
        return [(bias, None if bias is not None or norm is None else norm.running_mean) for bias, norm in places]

    def scale(self) -> Tensor:
        """By what the batch norm behind the reader multiplies each of its outputs, (O,) float64; ones without a norm.

        Outputs count as they stand behind it: changes of the writer reach all of them, and before a norm the channels that it
        makes small may be the largest.
        """
        size = len(self.reader.rows)
        if self.reader.norm is None:
            return torch.ones(size, dtype=torch.float64)
        norm = self.reader.norm[1]
        weight = torch.ones(size) if norm.weight is None else norm.weight.detach()
        scale = weight.double().cpu() / (cast(Tensor, norm.running_var).double().cpu() + norm.eps).sqrt()
        return torch.where(weight.cpu().abs() > 1e-6, scale, 0.0)

    def values(self) -> list[Tensor]:
        """A copy of all that is changed."""
        return [value.detach().clone() for value in self._tensors()]

    def set_(self, values: list[Tensor]) -> None:
        """Back to `values`."""
        with torch.no_grad():
            for tensor, value in zip(self._tensors(), values, strict=True):
                tensor.copy_(value)

    def _tensors(self) -> list[Tensor]:
        weights = [cast(Tensor, layer.weight) for layer in (self.writer.layer, self.reader.layer)]
        return weights + [place for pair in self._places() for place in pair if place is not None]

    def constants(self) -> tuple[bool, bool]:
        """Have writer and reader a place for a constant?"""
        one, two = (any(place is not None for place in pair) for pair in self._places())
        return one, two

    def move_(self, change: Changes, share: float) -> None:
        """Add a share of `change`."""
        layers = (self.writer.layer, self.reader.layer)
        with torch.no_grad():
            for layer, weight, constant, (bias, mean) in zip(layers, change[::2], change[1::2], self._places(), strict=True):
                held = cast(Tensor, layer.weight)
                held.add_(as_weight(layer, weight).to(held), alpha=share)
                if bias is not None:
                    bias.add_(constant.to(bias), alpha=share)
                elif mean is not None:
                    mean.sub_(constant.to(mean), alpha=share)


def writers(plan: Plan, model: nn.Module, batches: Batches) -> dict[str, Writer]:
    """For each layer of the cut `model` that alone reads a cut axis, the layer that alone writes it.

    Linear layers and convolutions without groups whose weights are their own and have no zeros, which might be those of a mask.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    names = dict(model.named_modules())
    found: dict[str, str] = {}
    for cut in (cut for step in plan.steps if isinstance(step, Keep) for cut in step.cuts):
        by = {role: {slot.tensor.rpartition(".")[0] for slot in cut.slots if slot.role == role} for role in ("write", "read")}
        if len(by["write"]) != 1 or len(by["read"]) != 1:
            continue
        (writer,), (reader,) = by["write"], by["read"]
        layers = [names.get(name) for name in (writer, reader)]
        own = all(layer is not None and is_matrix(layer) and owners[id(layer.weight)] == 1 for layer in layers)
        if own and (matrix(cast(nn.Module, layers[0])) != 0).all():
            found[reader] = writer
    behind = outlets(model, {name: names[name] for name in found.values()}, batches)
    norms = {writer: cast(_BatchNorm, names[norm]) for writer, norm in behind.items() if norm != writer}
    return {reader: Writer(name, names[name], norms.get(name)) for reader, name in found.items()}


@dataclass(frozen=True, eq=False)
class Straight:
    """Of one batch: what the writer reads, the slope of what lies between its output and the reader's input, and that input."""

    x: Tensor
    slope: Tensor
    h: Tensor

    def __call__(self, pair: Pair, change: Changes) -> Tensor:
        """What `change` adds to the reader's output behind its norm, as far as it is linear; (M, O)."""
        writer, reader = pair.writer.layer, pair.reader.layer
        weight = cast(Tensor, reader.weight).detach()
        inner = self.slope * _through(writer, as_weight(writer, change[0]), change[1], self.x)
        zero = torch.zeros_like(change[3])
        outer = _through(reader, weight, zero, inner) + _through(reader, as_weight(reader, change[2]), change[3], self.h)
        return outputs(reader, outer) * pair.scale().to(outer)


def _through(layer: nn.Module, weight: Tensor, constant: Tensor, x: Tensor) -> Tensor:
    """`layer` with other values."""
    has_bias = getattr(layer, "bias", None) is not None
    y = functional_call(layer, {"weight": weight} | ({"bias": torch.zeros_like(constant)} if has_bias else {}), (x,))
    return y + (constant if not isinstance(layer, nn.modules.conv._ConvNd) else constant.reshape(-1, *[1] * (weight.dim() - 2)))


class _Enough(Exception):
    """The reader has its input; the rest of the forward is not needed."""


def straight(model: nn.Module, pair: Pair, inputs: Any) -> Straight | None:
    """One forward as far as the reader; None where what lies between is not elementwise.

    An elementwise function is known by its derivative: for random u, the product of u with it is the slope times u.
    """
    made: dict[str, Tensor] = {}
    found: list[Straight] = []

    def write(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        made["x"], made["leaf"] = args[0].detach().clone(), output.detach().requires_grad_()
        torch.set_grad_enabled(True)
        return made["leaf"].clone()  # what follows may write into it

    def read(_: nn.Module, args: Any) -> None:
        h, leaf = args[0], made.get("leaf")
        if leaf is not None and h.shape == leaf.shape and h.requires_grad:
            probe = torch.randn(h.shape, generator=torch.Generator().manual_seed(0)).to(h)
            slope, mixed = (_gradient(value, leaf) for value in (h.sum(), (h * probe).sum()))
            if torch.allclose(mixed, slope * probe, rtol=1e-4, atol=1e-6 * float(slope.abs().max())):
                found.append(Straight(made["x"], slope, h.detach().clone()))
        raise _Enough

    handles = [pair.writer.layer.register_forward_hook(write), pair.reader.layer.register_forward_pre_hook(read)]
    try:
        with torch.no_grad(), evaluating(model), suppress(_Enough), fits(inputs):
            call(model, to_device(inputs, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)
    return gradient


def solution(
    pair: Pair, parts: Sequence[Straight], lacking: Sequence[Tensor], *, iterations: int, damping: float, sample: int | None
) -> Changes:
    """The changes that best make good what is `lacking` behind the norm (M, O), by so many conjugate gradients from zero.

    The normal equations ``(J'J + P) c = J'r``: J is applied part by part, P is what `damping` adds. They are conditioned by
    the covariances of what writer and reader read, without which the first directions would be those of largest variance.
    """
    count = sum(len(part) for part in lacking)
    inner = cast(Tensor, pair.reader.layer.weight).detach()
    scale = pair.scale().square()
    even = torch.where(scale > 0, 1 / scale, 0.0)
    squared = (
        (scale.to(inner)[:, None] * matrix(pair.reader.layer).double().square())
        .sum(0)
        .reshape(len(matrix(pair.writer.layer)), -1)
        .sum(1)
        .cpu()
    )
    slope = torch.stack([_mean_square(pair.writer.layer, part.slope) for part in parts]).mean(0)
    weigh = (squared * slope).clamp_min(1e-12)  # how much each unit counts in the outputs
    first, last = (
        _regular(layer, [part.x if layer is pair.writer.layer else part.h for part in parts], damping, sample)
        for layer in (pair.writer.layer, pair.reader.layer)
    )
    allowed = [float(there) for there in pair.constants()]

    def add_prior(change: Changes, product: Changes) -> Changes:
        one = product[0] + first[1] * weigh[:, None] * change[0]
        return one, product[1], product[2] + last[1] * scale[:, None] * change[2], product[3]

    def condition(g: Changes) -> Changes:
        return (
            (g[0] @ first[0]) / weigh[:, None],
            allowed[0] * g[1] / weigh,
            even[:, None] * g[2] @ last[0],
            allowed[1] * even * g[3],
        )

    def normal(change: Changes) -> Changes:
        return add_prior(change, _gradients(pair, parts, change, None, count, inner))

    residual = _gradients(pair, parts, None, lacking, count, inner)
    solved: Changes = tuple(torch.zeros_like(part) for part in residual)  # type: ignore[assignment]
    direction = step = condition(residual)
    size = _dot(residual, step)
    for _ in range(iterations):
        product = normal(direction)
        curved = _dot(direction, product)
        if size <= 0 or curved <= 0:
            break
        solved = _sum(solved, direction, size / curved)
        residual = _sum(residual, product, -size / curved)
        step = condition(residual)
        size, old = _dot(residual, step), size
        direction = _sum(step, direction, size / old)
    return solved


def _gradients(
    pair: Pair, parts: Sequence[Straight], change: Changes | None, lacking: Iterable[Tensor] | None, count: int, like: Tensor
) -> Changes:
    """J' of J `change`, or of what is `lacking`, as a mean over `count` rows; float64 on the CPU."""
    layers = (pair.writer.layer, pair.reader.layer)
    shapes = [shape for layer in layers for shape in (matrix(layer).shape, matrix(layer).shape[:1])]
    at = [torch.zeros(shape).to(like) for shape in shapes] if change is None else [part.to(like) for part in change]
    total = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    wanted: Iterator[Tensor | None] = iter(lacking) if lacking is not None else iter([None] * len(parts))
    for part, want in zip(parts, wanted, strict=True):
        with torch.enable_grad():
            given = [value.clone().requires_grad_() for value in at]
            made = part(pair, cast(Changes, tuple(given)))
            towards = made.detach() if want is None else want.to(made)
            found = torch.autograd.grad(made, given, towards)
        total = [a + b.double().cpu() / count for a, b in zip(total, found, strict=True)]
    return cast(Changes, tuple(total))


def _mean_square(layer: nn.Module, slope: Tensor) -> Tensor:
    return outputs(layer, slope).double().square().mean(0).cpu()


def _regular(layer: nn.Module, inputs: Sequence[Tensor], damping: float, sample: int | None) -> tuple[Tensor, Tensor]:
    """(inverse, addition) of the covariance (D, D) of what `layer` reads with a share `damping` of its mean variance."""
    size = matrix(layer).shape[1]
    mean, square, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64), 0
    for x in inputs:
        part = rows(layer, x)
        pick = drawn(len(part), sample)
        part = (part if pick is None else part[pick.to(part.device)]).double()
        mean, square, count = mean + part.sum(0).cpu(), square + (part.T @ part).cpu(), count + len(part)
    covariance = square / count - (mean / count)[:, None] * (mean / count)
    addition = (damping * covariance.diagonal().clamp_min(0).mean()).clamp_min(1e-12)
    return torch.linalg.inv(covariance + addition * torch.eye(size, dtype=torch.float64)), addition


def _dot(one: Changes, two: Changes) -> float:
    return sum(float((a * b).sum()) for a, b in zip(one, two, strict=True))


def _sum(one: Changes, two: Changes, share: float) -> Changes:
    return cast(Changes, tuple(a + share * b for a, b in zip(one, two, strict=True)))
