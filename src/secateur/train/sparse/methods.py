"""The published methods of sparse training, each as the combination of a ramp, a layout, growth and a rank term it is.

All return the hook `Sparse`. `keep` is the share of weights at the end, `steps` the optimizer steps of the whole training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.train.sparse.hook import Growth, Sparse
from secateur.train.sparse.ramp import Ramp
from secateur.train.sparse.rank import Rank
from secateur.train.sparse.select import Layout
from secateur.train.sparse.weights import weights_of

RPG_PUBLISHED: Mapping[float, tuple[float, float]] = {0.2: (0.5, 0.2), 0.1: (0.5, 0.1), 0.05: (3.0, 0.2), 0.02: (4.0, 0.2)}
"""Share kept to (lambda, delta), of the released scripts for ResNet-50 on ImageNet."""


def rpg(
    model: nn.Module,
    keep: float,
    steps: int,
    *,
    reading: Literal["released", "abstract", "st3", "acdc"] = "released",
    rank: Rank | None = None,
    every: int = 100,
    end: float = 0.9,
    dense: Sequence[str] = (),
    **more: Any,
) -> Sparse:
    """Rank-based pruning (Chen et al., 2023): sparse weights that are kept at high rank.

    | reading | the rank term | on |
    |---|---|---|
    | "released" | chooses what grows, when masks change: the published code | gradual global magnitude with growth |
    | "abstract" | acts on the weights in each step, and so on what grows | the same |
    | "st3" | acts on the weights in each step, pruned ones too | ST-3 |
    | "acdc" | acts on the weights in each step | AC/DC |

    `rank` replaces lambda and delta, which are else those published for the nearest `keep` (in ratio); on "st3" and "acdc",
    which have no published ones, the term has a tenth of the task's gradient in every layer. Masks change every `every`
    steps; the last density is reached at the share `end` of training, which short trainings want earlier than the 0.9 of the
    code. As released: an exponential ramp, a drop of 0.3, masks frozen from 0.901 on, no optimizer
    step where masks change, all convolutions and linear layers sparse, the rank term on convolutions. Departures: exact
    numbers of entries where the code keeps one more; growth scores |mean of gradients| where the code takes the mean of |.|.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> rpg(net, keep=0.02, steps=1000, every=50).rank
    Rank(strength=4.0, tail=0.2, acts='growth', every=1, linear=False, normalise=False)
    """
    if reading not in ("released", "abstract", "st3", "acdc"):
        raise SecateurError(f"RPG with reading={reading!r}", "no such reading", 'give "released", "abstract", "st3" or "acdc"')
    if not 0 < keep <= 1:
        raise SecateurError(f"RPG with keep={keep!r}", "no share that can be kept", "give one above 0 and at most 1")
    strength, tail = RPG_PUBLISHED[min(RPG_PUBLISHED, key=lambda known: abs(math.log(known / keep)))]
    convolutions = any(weight.convolution for weight in weights_of(model, dense))
    if reading == "st3":
        return st3(model, keep, steps, rank=rank or Rank(0.1, 0.2, "step", 20, not convolutions, True), dense=dense, **more)
    if reading == "acdc":
        return acdc(model, keep, steps, rank=rank or Rank(0.1, 0.2, "step", 20, not convolutions, True), dense=dense, **more)
    acts: Literal["growth", "step"] = "growth" if reading == "released" else "step"
    term = rank or Rank(strength, tail, acts, linear=not convolutions)
    return Sparse(model, Ramp(keep, steps, "exponential", every, end=end), growth=Growth(), rank=term, dense=dense, **more)


def gmp(model: nn.Module, keep: float, steps: int, *, every: int = 100, end: float = 0.9, **more: Any) -> Sparse:
    """Gradual magnitude pruning (Zhu and Gupta, 2017): a cubic ramp, the largest weights of all layers."""
    return Sparse(model, Ramp(keep, steps, "cubic", every, end=end), **more)


def granet(model: nn.Module, keep: float, steps: int, *, every: int = 100, **more: Any) -> Sparse:
    """Gradual magnitude pruning with growth by gradients (Liu et al., 2021, GraNet, from a dense network)."""
    return Sparse(model, Ramp(keep, steps, "cubic", every), growth=Growth(), **more)


def rigl(model: nn.Module, keep: float, steps: int, *, every: int = 100, layout: Layout | None = None, **more: Any) -> Sparse:
    """RigL (Evci et al., 2020): sparse from the first step, Erdos-Renyi-kernel, growth by gradients until 0.75 of training.

    From a pretrained network the largest weights of each layer begin; `start="random"` is the paper's, from scratch.
    """
    ramp = Ramp(keep, steps, "constant", every, freeze=0.75)
    return Sparse(model, ramp, growth=Growth(), layout=layout or Layout("erk"), **more)


def st3(model: nn.Module, keep: float, steps: int, *, every: int = 1, end: float = 0.5, **more: Any) -> Sparse:
    """ST-3 (Vanderschueren and De Vleeschouwer, 2023): soft thresholds and rescaling forward, straight-through gradients.

    A cubic ramp from 0.03 to `end` of training, global magnitude, thresholds taken anew after every step to the end. Scales
    lift what is left of an output, at most a hundredfold: clip gradients, as the released script does at a norm of 3.
    """
    return Sparse(model, Ramp(keep, steps, "cubic", every, begin=0.03, end=end, freeze=1.0), soft=True, **more)


def acdc(model: nn.Module, keep: float, steps: int, *, every: int | None = None, **more: Any) -> Sparse:
    """AC/DC (Peste et al., 2021): phases of sparse and of dense training in turn, global magnitude, sparse at the end.

    Dense for 0.1 of training, then phases of `every` steps (0.05 of training) in turn until 0.85.
    """
    ramp = Ramp(keep, steps, "alternating", every or max(1, steps // 20), begin=0.1, end=0.85)
    return Sparse(model, ramp, **more)


def fixed(model: nn.Module, plan: Plan, **more: Any) -> Sparse:
    """Training with the masks of `plan`: after one-shot pruning, pruning at initialisation, a lottery ticket."""
    return Sparse(model, None, plan=plan, **more)
