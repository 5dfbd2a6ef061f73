"""A copy of a module tree in which chosen tensors are replaced: `copy.deepcopy` for modules, without its cost.

Half of the time of a trace used to go into copying the empty hook tables of every module one by one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

PLAIN = (int, float, str, bool, type(None))
TABLES = (dict, OrderedDict)
HELD = (*TABLES, list)
COMPILED = "_compiled_call_impl"
"""What `module.compile()` leaves behind; PyTorch's own copies leave it out too."""


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy`, also where modules keep tensors they calculated, as the older weight norm does after a forward."""
    return copy.deepcopy(model, {**_calculated(model), **(memo or {})})


def _calculated(model: nn.Module) -> dict[int, Tensor]:
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(value): value.detach().clone() for value in held if value.grad_fn is not None}


def clone(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of `model`; `memo` maps ids of objects to what stands for them in the copy (and is added to).

    Modules whose class says how it is copied are copied that way.
    """
    memo |= _calculated(model) | memo
    modules = list(model.modules())
    if any(_own_way(type(module)) for module in modules):
        return copy.deepcopy(model, memo)
    for module in modules:
        memo[id(module)] = module.__class__.__new__(module.__class__)
    for module in modules:
        held = memo[id(module)].__dict__
        for key, value in vars(module).items():
            if type(value) in TABLES and not value:  # most of what a module holds is empty tables of hooks
                held[key] = type(value)()
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
        return type(value)((key, _copied(item, memo)) for key, item in value.items())
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
        (module, {key: value.copy() if type(value) in HELD else value for key, value in vars(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, held in before:
            vars(module).clear()
            vars(module).update(held)
