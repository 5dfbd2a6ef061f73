"""Truncation by the compiled kernels, where there are some: one call for all layers of one processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from secateur.linalg import Stack
from secateur.native.lowrank import LONGEST, Matrices, matrices_of, truncate_all, usable
from secateur.surgery import unfold
from secateur.train.trp.layers import Layer


class Kernels:
    """Which layers the kernels take, and the vectors from which every layer starts next time, alone or in a stack."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, Matrices | None]] = {}
        self.stacked: dict[tuple[str, ...], Tensor] = {}

    def truncate(
        self, layers: Sequence[Layer], discarded: float, most: Callable[[str], int | None], pushes: dict[str, Tensor] | None
    ) -> list[Layer]:
        """Truncate the weights in place and put their polar factors into `pushes`, if given; the layers left to others.

        `discarded`: the share of the energy that may go; `most`: the highest rank of a layer, by name.
        """
        taken: dict[str, tuple[Tensor, Tensor | None, Matrices]] = {}
        for layer in layers:
            matrices = self._matrices(layer)
            if matrices is not None and (matrices.rows.shape[1] <= LONGEST or matrices.followed):
                taken[layer.name] = layer.weight, self._push(layer, pushes), matrices
        if not taken:
            return list(layers)
        limits = {name: limit for name in taken if (limit := most(name)) is not None}
        left = set(truncate_all(taken, discarded, limits, torch.get_num_threads()))
        done = taken.keys() - left
        torch.autograd.graph.increment_version([weight for name, (weight, _, _) in taken.items() if name in done])
        if pushes is not None:
            pushes.update({name: push for name, (_, push, _) in taken.items() if name in done and push is not None})
        return [layer for layer in layers if layer.name not in done]

    def keep(self, group: Stack, layers: Sequence[Layer], basis: Tensor) -> None:
        """Let the next truncation of the `layers` of a stack start from `basis` (B, M, R), whoever does it."""
        names = tuple(layer.name for layer in layers)
        self.stacked = {others: held for others, held in self.stacked.items() if not set(others) & set(names)}
        self.stacked[names] = basis
        for layer, vectors in zip(layers, basis.split([part.rows for part in group.parts]), strict=True):
            self._start(layer, vectors)

    def forget(self) -> None:
        """Start from scratch next time."""
        self.stacked.clear()
        for _, matrices in self._known.values():
            if matrices is not None:
                matrices.followed = 0

    def state(self) -> dict[str, Tensor]:
        """Vectors (B, M, R) by the names of the layers whose they are, one in a line."""
        alone = {
            name: matrices.basis[None, : matrices.followed].mT
            for name, (_, matrices) in self._known.items()
            if matrices is not None and matrices.basis is not None and matrices.followed
        }
        stacked = {"\n".join(names): held for names, held in self.stacked.items() if alone.keys().isdisjoint(names)}
        return {names: held.clone() for names, held in (stacked | alone).items()}

    def load(self, state: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> None:
        """Go on from `state`."""
        self.forget()
        self.stacked = {tuple(names.split("\n")): value.clone() for names, value in state.items()}
        for names, value in self.stacked.items():
            if len(names) == 1 and names[0] in layers:
                self._start(layers[names[0]], value)

    def _start(self, layer: Layer, basis: Tensor) -> None:
        matrices = self._matrices(layer)
        if matrices is None or matrices.basis is None or basis.shape[:2] != (1, matrices.basis.shape[1]):
            return
        vectors = basis[0].mT
        vectors = vectors[vectors.square().sum(1) > 0]
        matrices.followed = len(vectors) if len(vectors) <= min(matrices.kept, LONGEST) else 0
        matrices.basis[: matrices.followed].copy_(vectors[: matrices.followed])

    def _matrices(self, layer: Layer) -> Matrices | None:
        weight = layer.weight
        like = weight.shape, weight.stride(), weight.dtype, weight.device
        if self._known.get(layer.name, (None,))[0] != like:
            plain = type(weight) in (Tensor, nn.Parameter)
            found = matrices_of(weight.detach(), partial(unfold, format=layer.format)) if plain and usable() else None
            self._known[layer.name] = like, found
        return self._known[layer.name][1]

    def _push(self, layer: Layer, pushes: Mapping[str, Tensor] | None) -> Tensor | None:
        if pushes is None:
            return None
        push = pushes.get(layer.name)
        weight = layer.weight.detach()
        fits = push is not None and push.device == weight.device and push.stride() == weight.stride()
        return push if fits and push is not None and push.dtype == weight.dtype else torch.empty_like(weight)
