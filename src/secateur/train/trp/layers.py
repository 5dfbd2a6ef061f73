"""Which layers trained rank pruning acts on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.factor import Format
from secateur.core.numeric import require_finite
from secateur.core.patterns import matches, patterns
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
    ignore = patterns(ignore)
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
    layers = tuple(layer for layer in found if layer.name and owners[id(layer.weight)] == 1 and not matches(layer.name, ignore))
    if not layers:
        do = "lift ignore=, or set stem, pointwise, strided or linear"
        raise SecateurError("TRP", "no plain convolution these settings speak of", do)
    return layers


def current(model: nn.Module, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """`layers` with the weights `model` holds now: those given, where nobody has put others in their place.

    Raises `SecateurError` for a layer that is gone, or has become another one: its old weight is in no model any more.
    """
    weights = [_weight(model, layer) for layer in layers]
    if all(weight is layer.weight for weight, layer in zip(weights, layers, strict=True)):
        return layers
    return tuple(replace(layer, weight=weight) for weight, layer in zip(weights, layers, strict=True))


def _weight(model: nn.Module, layer: Layer) -> Tensor:
    module: nn.Module | None = model
    for part in layer.name.split("."):
        module = module._modules.get(part) if module is not None else None
    weight = getattr(module, "weight", None)
    if weight is layer.weight:
        return layer.weight
    shape = tuple(layer.weight.shape)
    if type(module) in (nn.Conv2d, nn.Linear) and isinstance(weight, Tensor) and tuple(weight.shape) == shape:
        return weight
    found = "no layer" if module is None else f"a {type(module).__name__}"
    found += f" of weight {list(weight.shape)}" if isinstance(weight, Tensor) else ""
    do = "make the hook anew for the model as it is"
    raise SecateurError(f"low rank in training for the layer {layer.name!r} of weight {list(shape)}", f"{found} there now", do)


def require_numbers(layers: Sequence[Layer]) -> None:
    """Raise `SecateurError` naming the first layer with weights that have no values, or some that are not finite."""
    do = "give trained weights, or lower the learning rate they were trained with"
    for layer in layers:
        require_finite(layer.weight, f"low rank in training for the layer {layer.name!r}", do)


def _wanted(module: nn.Conv2d, settings: TRPSettings) -> bool:
    strided = module.stride != (1, 1)
    return (settings.pointwise or module.kernel_size != (1, 1)) and (settings.strided or not strided)
