"""How many steps may pass between two truncations of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.train.trp.settings import TRPSettings

LONGEST = 256
"""Steps a layer is left alone at most, however little it moves: more would hardly save time."""


class Periods:
    """The period m of every layer: that of the settings, or, where they are adaptive, its own power of two.

    Theorem 2 of Xu et al., 2020: the energy rank does not grow from one truncation to the next while m * G < sqrt(e) * ||W||,
    G bounding the norm of every step. Its proof needs the distance moved, ||W^(t+m) - T^z||, of which m * G is a bound; so
    that distance is measured, and the next period is the longest at which a layer moving on at that pace stays below
    sqrt(e) * ||W||. Powers of two, so that layers fall due together and truncate in stacks. Distances are copied from an
    accelerator without waiting, and used when they have arrived.
    """

    def __init__(self, settings: TRPSettings, names: Sequence[str]) -> None:
        self._adaptive, self._share = settings.adaptive, 1 - settings.energy
        first = 1 << (settings.every.bit_length() - 1) if settings.adaptive else settings.every
        self.steps: dict[str, int] = dict.fromkeys(names, first)
        self._arriving: list[tuple[list[str], list[int], Tensor, Any]] = []

    def due(self, name: str, step: int) -> bool:
        """Is the layer to be truncated before step number `step`?"""
        self._arrived()
        return step % self.steps[name] == 0

    def adapt(self, moved: Mapping[str, tuple[Tensor, Tensor]], step: int, last: Mapping[str, int]) -> None:
        """Set periods from (weight now, weight after the last truncation) of each layer, `last` saying when that was."""
        names = list(moved)
        now, then = [now.detach() for now, _ in moved.values()], [then.to(now.device) for now, then in moved.values()]
        distance = torch.stack(torch._foreach_norm(torch._foreach_sub(now, then)))
        ratio = (distance / torch.stack(torch._foreach_norm(now)) / self._share**0.5).float()
        passed = [step - last[name] for name in names]
        if ratio.device.type != "cuda":
            self._set(names, passed, ratio)
            return
        host = torch.empty(ratio.shape, pin_memory=True)
        host.copy_(ratio, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._arriving.append((names, passed, host, event))

    def state(self) -> dict[str, int]:
        """Layer to period."""
        return dict(self.steps)

    def load(self, state: Mapping[str, int]) -> None:
        """Go on from `state`."""
        self.steps, self._arriving = dict(state), []

    def _arrived(self) -> None:
        while self._arriving and self._arriving[0][3].query():
            self._set(*self._arriving.pop(0)[:3])

    def _set(self, names: Sequence[str], passed: Sequence[int], ratios: Tensor) -> None:
        for name, steps, ratio in zip(names, passed, ratios.tolist(), strict=True):
            if ratio == ratio:  # a layer that is zero all over stays as it is
                longest = int(min(LONGEST, max(1.0, steps / max(ratio, 1e-9))))
                self.steps[name] = 1 << (longest.bit_length() - 1)
