"""Integer attributes of modules that mirror a size and have to follow it: "layer1.attention.num_heads"."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError


def owner(model: nn.Module, path: str) -> tuple[Any, str]:
    """The object and the last name of a dotted path, which may end in an index into a tuple or list."""
    head, _, name = path.rpartition(".")
    if name.isdecimal() and not isinstance(_walk(model, head), (nn.Sequential, nn.ModuleList)):
        return owner(model, head)[0], path[len(head) - len(head.rpartition(".")[2]) :]
    return _walk(model, head), name


def _walk(model: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        model = model[int(part)] if part.isdecimal() and not isinstance(model, nn.Module) else getattr(model, part)
    return model


def read(model: nn.Module, path: str) -> int:
    """The number the attribute holds. Raises `SecateurError` where there is none: a plan may come from a stranger."""
    try:
        holder, name = owner(model, path)
        first, _, index = name.partition(".")
        value = getattr(holder, first)
        value = value[int(index)] if index else value
    except (AttributeError, IndexError, TypeError, ValueError):
        value = None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise SecateurError(
            "a plan applied to this model", f"no whole number {path!r}", "build the model the plan was made for"
        )
    return int(value)


def write(model: nn.Module, path: str, number: int) -> None:
    """Make the attribute hold `number`; tuples and lists are replaced by a changed copy."""
    holder, name = owner(model, path)
    first, _, index = name.partition(".")
    if index:
        old = getattr(holder, first)
        changed = [*old]
        changed[int(index)] = number
        _put(holder, first, changed if isinstance(old, list) else tuple(changed))
    else:
        _put(holder, first, number)


def _put(holder: Any, name: str, value: Any) -> None:
    """Set an attribute, also of a frozen configuration."""
    try:
        setattr(holder, name, value)
    except (AttributeError, TypeError, ValueError):
        object.__setattr__(holder, name, value)


def follow(module: nn.Module) -> None:
    """Set the sizes that PyTorch's own modules keep beside their tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        ahead, behind = (0, 1) if module.transposed else (1, 0)
        sizes = [weight.shape[ahead], weight.shape[behind]]
        sizes[1 if module.transposed else 0] *= module.groups
        module.in_channels, module.out_channels = sizes
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = weight if weight is not None else module.running_mean
        if held is not None:
            module.num_features = held.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        module.hidden_size = module.get_parameter("weight_hh_l0").shape[1]
