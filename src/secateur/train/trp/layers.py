"""Which layers trained rank pruning acts on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.factor import Format
from secateur.train.trp.settings import TRPSettings


@dataclass(frozen=True)
class Layer:
    """One layer, the weight that is truncated, and how it is unfolded; `stride` is (height, width)."""

    name: str
    weight: Tensor
    format: Format
    stride: tuple[int, int] = (1, 1)


def layers_of(model: nn.Module, settings: TRPSettings, ignore: Sequence[str] = ()) -> tuple[Layer, ...]:
    """The layers `settings` speak of, in the order of the modules. Raises `SecateurError` where there are none."""
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: list[Layer] = []
    stem_passed = settings.stem
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            first = module.kernel_size != (1, 1) and not stem_passed
            stem_passed = stem_passed or first
            if not first and module.groups == 1 and _wanted(module, settings):
                # a 1 x 1 kernel has no paths to decouple
                form: Format = "channel" if module.kernel_size == (1, 1) and settings.format == "decouple" else settings.format
                found.append(Layer(name, module.weight, form, (module.stride[0], module.stride[1])))
        elif type(module) is nn.Linear and settings.linear:
            found.append(Layer(name, module.weight, "linear"))
    layers = tuple(
        layer
        for layer in found
        if layer.name and owners[id(layer.weight)] == 1 and not any(fnmatchcase(layer.name, pattern) for pattern in ignore)
    )
    if not layers:
        do = "lift ignore=, or set stem, pointwise, strided or linear"
        raise SecateurError("TRP", "no plain convolution these settings speak of", do)
    return layers


def _wanted(module: nn.Conv2d, settings: TRPSettings) -> bool:
    strided = module.stride != (1, 1)
    return (settings.pointwise or module.kernel_size != (1, 1)) and (settings.strided or not strided)
