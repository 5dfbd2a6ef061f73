"""Layers that can become products, with what flows through them.

Shape legend: O out, I in, H x W kernel, D = I * H * W inputs of one output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.patterns import matches, patterns
from secateur.measure.observe import observe


@dataclass(frozen=True, eq=False)
class Place:
    """One layer: its name, itself, the shape of what it reads in a forward of the example, and how often that calls it."""

    name: str
    layer: Any
    shape: tuple[int, ...]
    calls: int = 1

    @property
    def weight(self) -> Tensor:
        """(O, I, H, W), or (O, I) of a linear layer."""
        return self.layer.weight.detach()

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two layers have in common that take the same time."""
        if isinstance(self.layer, nn.Linear):
            return ("linear", tuple(self.weight.shape), self.shape)
        conv = self.layer
        return (tuple(self.weight.shape), conv.stride, conv.padding, conv.dilation, conv.bias is None, self.shape)


def places(
    model: nn.Module, example: Any, *, stem: bool = False, linear: bool = False, ignore: Sequence[str] = ()
) -> tuple[Place, ...]:
    """The plain convolutions without groups of `model` in the order of its forward; with `linear` also linear layers.

    `stem`: the first of them too. `ignore` takes shell patterns of names. Layers whose tensors are shared, and those that
    a forward calls with several shapes, stay out. Raises `SecateurError` where nothing is left.
    """
    ignore = patterns(ignore)
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    known = {
        name: module
        for name, module in model.named_modules()
        if name
        and ((type(module) is nn.Conv2d and module.groups == 1) or (linear and type(module) is nn.Linear))
        and all(owners[id(parameter)] == 1 for parameter in module.parameters())
    }
    read: dict[str, Counter[tuple[int, ...]]] = {}
    looks = {name: (lambda x, _, name=name: read.setdefault(name, Counter()).update([tuple(x.shape)])) for name in known}
    observe(model, looks, [(example, None)])
    names = [name for name in read if len(read[name]) == 1]
    first = next((name for name in names if isinstance(known[name], nn.Conv2d)), None)
    left = [name for name in names if (stem or name != first) and not matches(name, ignore)]
    if not left:
        raise SecateurError("ranks for layers", "no plain convolution", "lift ignore=, or set stem or linear")
    return tuple(Place(name, known[name], *next(iter(read[name].items()))) for name in left)
