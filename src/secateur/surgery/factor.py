"""Carry out a factor step: one layer becomes a sequence of smaller plain layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn, optim

from secateur.core.errors import SecateurError
from secateur.core.factor import Factor, Product, factored, piece_shapes
from secateur.surgery.fingerprint import fingerprint, tensors
from secateur.surgery.replace import replace_module
from secateur.surgery.unfold import pieces, project

_KINDS: dict[type, str] = {nn.Conv2d: "convolution", nn.Linear: "linear layer"}


def factor_(step: Factor, model: nn.Module, optimizer: optim.Optimizer | None = None) -> None:
    """Replace every layer of `step` in `model` by its product, with values from the singular vectors of its weight.

    Biases stay the same parameters. `optimizer` holds the new weights in the place of the old one; their state starts
    anew, since momentum of a weight is none of its factors. Raises `SecateurError`, before anything changes, for a layer
    that is no plain convolution or linear layer, a tied weight, or a rank above the full one.
    """
    made = [(product, _built(product, layer)) for product, layer in _layers(step, model)]
    for product, sequence in made:
        old: Any = model.get_submodule(product.module)
        replace_module(model, product.module, sequence)
        if optimizer is not None:
            _swap(optimizer, old, list(sequence))


def projected(step: Factor, model: nn.Module) -> dict[str, Tensor]:
    """Name to value of every weight of `step`, at full size, as its product represents it."""
    return {
        f"{product.module}.weight": layer.weight.detach().clone() if layer.weight.is_meta else project(layer.weight, product)
        for product, layer in _layers(step, model)
    }


def _layers(step: Factor, model: nn.Module) -> Iterator[tuple[Product, Any]]:
    """Every product with the layer it replaces, all of them looked at first."""
    owners: dict[int, list[str]] = {}
    for name, tensor in tensors(model):
        owners.setdefault(id(tensor), []).append(name)
    shapes: Mapping[str, tuple[int, ...]] = fingerprint(model)
    found = []
    for product in step.products:
        shapes = factored(shapes, product)
        layer = model.get_submodule(product.module)
        if reason := _unfit(product, model, layer, owners):
            do = "leave it whole, or give the plan to the model it was made for"
            raise SecateurError(f"a product for the layer {product.module!r}", reason, do)
        found.append((product, layer))
    yield from found


def _unfit(product: Product, model: nn.Module, layer: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
    """Why the layer cannot become this product, or None."""
    wanted = nn.Linear if product.format == "linear" else nn.Conv2d
    if type(layer) is not wanted:
        return f"a {type(layer).__name__} where format {product.format!r} needs a plain {_KINDS[wanted]}"
    names = [name for tensor in layer.parameters() for name in owners[id(tensor)]]
    if tied := [name for name in names if name.rpartition(".")[0] != product.module]:
        return f"a tensor shared with {tied[0]!r}"
    if isinstance(layer, nn.Conv2d) and layer.groups != product.groups:
        return f"a convolution of {layer.groups} groups where the plan has {product.groups}"
    if isinstance(model.get_submodule(product.module.rpartition(".")[0]), nn.TransformerEncoderLayer):
        return "a weight that nn.TransformerEncoderLayer reads itself"
    return None


def _built(product: Product, layer: Any) -> nn.Sequential:
    """The product's layers with values, in the mode, dtype and on the device of `layer`."""
    shapes = piece_shapes(product, tuple(layer.weight.shape))
    weight = layer.weight
    values = [weight.new_empty(shape) for shape in shapes] if weight.is_meta else pieces(weight, product)
    kinds = [_linear(shape) for shape in shapes] if product.format == "linear" else _convolutions(product, layer, shapes)
    for made, value in zip(kinds, values, strict=True):
        made.weight = nn.Parameter(value, requires_grad=weight.requires_grad)
    kinds[-1].bias = layer.bias
    return nn.Sequential(*kinds).train(layer.training)


def _linear(shape: tuple[int, ...]) -> Any:
    return nn.Linear(shape[1], shape[0], bias=False, device="meta")


def _convolutions(product: Product, layer: nn.Conv2d, shapes: list[tuple[int, ...]]) -> list[Any]:
    """Each layer takes the stride, padding and dilation along the dims in which its kernel extends."""
    form, groups = product.format, product.groups
    where: list[tuple[bool, bool]] = {  # whose kernel extends along (height, width)
        "channel": [(True, True), (False, False)],
        "spatial": [(True, False), (False, True)],
        "decouple": [(False, False), (True, True)],
        "tucker2": [(False, False), (True, True), (False, False)],
    }[form]
    grouped = {"decouple": [1, layer.out_channels], "tucker2": [1, 1, 1]}.get(form, [groups, groups])
    made: list[Any] = []
    for shape, along, count in zip(shapes, where, grouped, strict=True):
        padding = layer.padding if isinstance(layer.padding, str) and any(along) else _some(layer.padding, along, 0)
        made.append(
            nn.Conv2d(
                shape[1] * count,
                shape[0],
                (shape[2], shape[3]),
                stride=_some(layer.stride, along, 1),
                padding=padding,
                dilation=_some(layer.dilation, along, 1),
                groups=count,
                bias=False,
                padding_mode=layer.padding_mode if any(along) else "zeros",
                device="meta",
            )
        )
    return made


def _some(values: Any, along: tuple[bool, bool], else_: int) -> tuple[int, int]:
    """The entries of `values` for the dims in `along`."""
    if isinstance(values, str):
        return else_, else_
    height, width = (value if extends else else_ for value, extends in zip(values, along, strict=True))
    return height, width


def _swap(optimizer: optim.Optimizer, old: Any, new: list[Any]) -> None:
    """The weights of `new` in the place of that of `old`; an optimizer that was made with names gets theirs."""
    for group in optimizer.param_groups:
        places = {id(parameter): place for place, parameter in enumerate(group["params"])}
        names = group.get("param_names")
        if names and old.bias is not None and id(old.bias) in places:
            at = places[id(old.bias)]
            names[at] = f"{names[at].removesuffix('bias')}{len(new) - 1}.bias"
        if id(old.weight) in places:
            at = places[id(old.weight)]
            group["params"][at : at + 1] = [layer.weight for layer in new]
            if names:
                stem = names[at].removesuffix("weight")
                names[at : at + 1] = [f"{stem}{number}.weight" for number in range(len(new))]
    optimizer.state.pop(old.weight, None)


def without(step: Factor, model: nn.Module) -> dict[int, Tensor]:
    """For a copy of `model` about to be factored: every tensor with its own copy, the weights that go with themselves."""
    going = {f"{product.module}.weight" for product in step.products}
    memo: dict[int, Tensor] = {}
    for name, tensor in tensors(model):
        if id(tensor) not in memo:
            copy = tensor.detach() if name in going else tensor.detach().clone()
            kept = nn.Parameter(copy, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
            memo[id(tensor)] = kept
    return memo
