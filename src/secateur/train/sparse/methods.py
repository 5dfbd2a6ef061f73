"""The published methods of sparse training, each as the combination of a ramp, a layout, growth and a rank term it is.

All return the hook `Sparse`. `keep` is the share of weights at the end, `steps` the optimizer steps of the whole training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Plan
from secateur.train.sparse.hook import Growth, Sparse
from secateur.train.sparse.ramp import Ramp, Shape
from secateur.train.sparse.rank import Rank
from secateur.train.sparse.select import Layout
from secateur.train.sparse.weights import weights_of

RPG_PUBLISHED: Mapping[float, tuple[float, float]] = {0.2: (0.5, 0.2), 0.1: (0.5, 0.1), 0.05: (3.0, 0.2), 0.02: (4.0, 0.2)}
"""Share kept to (lambda, delta), of the released scripts for ResNet-50 on ImageNet."""


Reading = Literal["released", "abstract", "st3", "acdc"]


def rpg(
    model: nn.Module,
    keep: float,
    steps: int,
    *,
    reading: Reading = "released",
    rank: Rank | None = None,
    growth: Growth | None = None,
    shape: Shape | None = None,
    every: int | None = None,
    end: float | None = None,
    freeze: float | None = None,
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

    What is not given is as released: a ramp of `shape` "exponential", masks that change `every` 100 steps, the last density at
    the share `end` 0.9 of training (short trainings want it earlier), masks frozen from `freeze` 0.901 on, a drop of 0.3 and
    no optimizer step where masks change (`growth`), all convolutions and linear layers sparse. "st3" and "acdc" have what `st3`
    and `acdc` have, and refuse `growth`; phases of "acdc" have no `shape` and no `freeze`. `rank` replaces the term of
    `rank_of`, and says itself when it acts. Departures: exact numbers of entries where the code keeps one more; growth scores
    |mean of gradients| where the code takes the mean of |.|.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> rpg(net, keep=0.02, steps=1000, every=50, shape="cubic", growth=Growth(drop=0.02)).ramp.shape
    'cubic'
    """
    _known(reading)
    term = rank or rank_of(model, keep, reading=reading, dense=dense)
    of_growth = bool(term.strength) and term.acts == "growth"
    for lost, what, do in (
        (reading in ("abstract", "st3", "acdc") and of_growth, "a rank term that acts on growth", 'give acts="step"'),
        (reading in ("st3", "acdc") and growth is not None, "growth", 'leave growth out, or take the reading "abstract"'),
        (reading == "acdc" and freeze is not None, "freeze", "give `end`, where phases stop"),
        (reading == "acdc" and shape is not None, "shape", "leave it out, or take another reading"),
    ):
        if lost:
            raise SecateurError(f"RPG with reading={reading!r}", f"{what}, for which it has no use", do)
    own: dict[str, Any] = {"every": every, "end": end, "freeze": freeze, "shape": shape}
    given = {name: value for name, value in own.items() if value is not None}
    if reading in ("st3", "acdc"):
        return (st3 if reading == "st3" else acdc)(model, keep, steps, rank=term, dense=dense, **given, **more)
    ramp = Ramp(keep, steps, **{"shape": "exponential", **given})
    return Sparse(model, ramp, growth=growth or Growth(), rank=term, dense=dense, **more)


def rank_of(model: nn.Module, keep: float, *, reading: Reading = "released", dense: Sequence[str] = ()) -> Rank:
    """The rank term `rpg` takes: lambda and delta published for the nearest `keep` (in ratio).

    On "st3" and "acdc", which have no published ones, it has three hundredths of the task's gradient in every layer: of 0.003
    to 0.1 what did best on ST-3 with held-out images. On AC/DC none did better than no term.

    The released code, which is for ResNets, leaves linear layers out of the term. They count where most of the weights that may
    become sparse are theirs: in a transformer, whose one convolution cuts patches, the term would else act on next to nothing.
    `Rank(..., linear=...)` decides otherwise. Raises `SecateurError` for a reading or a share there is none of.

    >>> term = rank_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), keep=0.02)
    >>> term.strength, term.tail, term.acts, term.linear
    (4.0, 0.2, 'growth', False)
    """
    _known(reading)
    if not 0 < keep <= 1:
        raise SecateurError(f"RPG with keep={keep!r}", "no share that can be kept", "give one above 0 and at most 1")
    sizes = {True: 0, False: 0}
    for weight in weights_of(model, dense):
        sizes[weight.convolution] += weight.tensor.numel()
    linear = sizes[False] > sizes[True]
    if reading in ("st3", "acdc"):
        return Rank(0.03, 0.2, "step", 20, linear, True)
    strength, tail = RPG_PUBLISHED[min(RPG_PUBLISHED, key=lambda known: abs(math.log(known / keep)))]
    return Rank(strength, tail, "growth" if reading == "released" else "step", linear=linear)


def _known(reading: str) -> None:
    if reading not in get_args(Reading):
        raise SecateurError(f"RPG with reading={reading!r}", "no such reading", nearest(str(reading), get_args(Reading)))


def gmp(model: nn.Module, keep: float, steps: int, *, every: int = 100, end: float = 0.9, **more: Any) -> Sparse:
    """Gradual magnitude pruning (Zhu and Gupta, 2017): a cubic ramp, the largest weights of all layers."""
    return Sparse(model, Ramp(keep, steps, "cubic", every, end=end), **more)


def granet(
    model: nn.Module,
    keep: float,
    steps: int,
    *,
    every: int = 100,
    end: float = 0.9,
    freeze: float = 0.901,
    growth: Growth | None = None,
    **more: Any,
) -> Sparse:
    """Gradual magnitude pruning with growth by gradients (Liu et al., 2021, GraNet, from a dense network)."""
    return Sparse(model, Ramp(keep, steps, "cubic", every, end=end, freeze=freeze), growth=growth or Growth(), **more)


def rigl(
    model: nn.Module,
    keep: float,
    steps: int,
    *,
    every: int = 100,
    freeze: float = 0.75,
    growth: Growth | None = None,
    layout: Layout | None = None,
    **more: Any,
) -> Sparse:
    """RigL (Evci et al., 2020): sparse from the first step, Erdos-Renyi-kernel, growth by gradients until `freeze` of training.

    From a pretrained network the largest weights of each layer begin; `start="random"` is the paper's, from scratch.
    """
    ramp = Ramp(keep, steps, "constant", every, freeze=freeze)
    return Sparse(model, ramp, growth=growth or Growth(), layout=layout or Layout("erk"), **more)


def st3(
    model: nn.Module,
    keep: float,
    steps: int,
    *,
    every: int = 1,
    end: float = 0.5,
    freeze: float = 1.0,
    shape: Shape = "cubic",
    **more: Any,
) -> Sparse:
    """ST-3 (Vanderschueren and De Vleeschouwer, 2023): soft thresholds and rescaling forward, straight-through gradients.

    A cubic ramp from 0.03 to `end` of training, global magnitude, thresholds taken anew after every step until `freeze`, where
    what the model computes with begins to train with the masks it has. Scales lift what is left of an output, at most a
    hundredfold: clip gradients, as the released script does at a norm of 3.
    """
    return Sparse(model, Ramp(keep, steps, shape, every, begin=0.03, end=end, freeze=freeze), soft=True, **more)


def acdc(model: nn.Module, keep: float, steps: int, *, every: int | None = None, end: float = 0.85, **more: Any) -> Sparse:
    """AC/DC (Peste et al., 2021): phases of sparse and of dense training in turn, global magnitude, sparse at the end.

    Dense for 0.1 of training, then phases of `every` steps (0.05 of training) in turn until `end`.
    """
    ramp = Ramp(keep, steps, "alternating", max(1, steps // 20) if every is None else every, begin=0.1, end=end)
    return Sparse(model, ramp, **more)


def fixed(model: nn.Module, plan: Plan, **more: Any) -> Sparse:
    """Training with the masks of `plan`: after one-shot pruning, pruning at initialisation, a lottery ticket."""
    return Sparse(model, None, plan=plan, **more)
