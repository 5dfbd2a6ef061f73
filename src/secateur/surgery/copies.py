"""A copy of a module tree in which chosen tensors are replaced: `copy.deepcopy` for modules, without its cost.

Half of the time of a trace used to go into copying the empty hook tables of every module one by one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (int, float, str, bool, type(None))
TABLES = (dict, OrderedDict)
HELD = (*TABLES, list)
OWN = {"_parameters", "_buffers", "_modules"}
"""Where a module keeps its tensors and children by name."""
COMPILED = "_compiled_call_impl"
"""What `module.compile()` leaves behind; PyTorch's own copies leave it out too."""


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy`, also where modules keep tensors they calculated, as the older weight norm does after a forward."""
    return _leaves(copy.deepcopy(model, {**_calculated(model), **(memo or {})}))


def _leaves(model: nn.Module) -> nn.Module:
    """PyTorch copies the parameters of scripted modules as results of a calculation, which no optimizer takes."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False) if isinstance(module, torch.jit.ScriptModule) else ():
            parameter.detach_().requires_grad_(parameter.is_floating_point())
    return model


def _calculated(model: nn.Module) -> dict[int, Tensor]:
    held = (table[key] for _, table, key in aliases(model))
    return {id(value): value.detach().clone() for value in held if value.grad_fn is not None}


def aliases(model: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Every tensor a module holds beside its parameters and buffers, as an attribute or in a table or list that is one.

    Comes as (name, the table, its key there), as from `holders`; the name says where it was found and is no tensor's.
    """
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{path}.{key}", vars(module), key
            elif type(value) in HELD and value and key not in OWN:
                for inner, item in enumerate(value) if type(value) is list else value.items():
                    if isinstance(item, Tensor):
                        yield f"{path}.{key}.{inner}", value, inner


def clone(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of `model`; `memo` maps ids of objects to what stands for them in the copy (and is added to).

    Modules whose class says how it is copied are copied that way.
    """
    memo |= _calculated(model) | memo
    modules = list(model.modules())
    if any(_own_way(type(module)) for module in modules):
        return _leaves(copy.deepcopy(model, memo))
    for module in modules:
        memo[id(module)] = module.__class__.__new__(module.__class__)
    for module in modules:
        held = memo[id(module)].__dict__
        for key, value in vars(module).items():
            if type(value) in TABLES and not value and id(value) not in memo:  # most of it is empty tables of hooks
                held[key] = memo[id(value)] = type(value)()
            elif key != COMPILED:
                held[key] = _copied(value, memo)
    return memo[id(model)]


def _own_way(kind: type) -> bool:
    """Does the class say how it is copied? Recurrent layers hold weak references to their weights."""
    usual = all(_of_torch(getattr(kind, name)) for name in ("__getstate__", "__setstate__"))
    return not usual or issubclass(kind, nn.RNNBase) or hasattr(kind, "__deepcopy__")


def _of_torch(method: Any) -> bool:
    return method is object.__getstate__ or getattr(method, "__module__", "").startswith("torch.nn.modules")


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, PLAIN):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if type(value) in TABLES:
        table = memo[id(value)] = type(value)()  # known before it is filled: handles of hooks and other modules refer to it
        table.update((key, _copied(item, memo)) for key, item in value.items())
        return table
    if type(value) is tuple and all(isinstance(item, PLAIN) for item in value):
        return value
    return copy.deepcopy(value, memo)


def forget(model: nn.Module) -> nn.Module:
    """Make modules drop tensors they computed from their weights and kept, as they do where a mode changes."""
    own = [(module, module.training) for module in model.modules() if type(module).train is not nn.Module.train]
    modes = [(module, module.training) for module in model.modules()] if own else []
    for module, mode in own:
        module.train(not mode)
    for module, mode in own:
        module.train(mode)
    for module, mode in modes:
        module.training = mode
    return model


@contextmanager
def remembered(model: nn.Module) -> Iterator[None]:
    """What modules note down on themselves in the block is gone after it."""
    before = [
        (module, {key: (value, value.copy() if type(value) in HELD else None) for key, value in vars(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, held in before:
            vars(module).clear()
            for key, (value, items) in held.items():
                if items is not None and (value or items):  # the same object again: other modules and handles refer to it
                    value.clear()
                    (value.extend if type(value) is list else value.update)(items)
                vars(module)[key] = value
