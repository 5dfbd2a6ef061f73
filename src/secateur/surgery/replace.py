"""Put a layer in the place of another."""

from __future__ import annotations

from torch import nn

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
"""What torch keeps of hooks on calls; those on state dicts speak of names that go."""


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Let `new` be the module `name` of `model`. Hooks on calls of the old one go on, and their handles still remove them."""
    old = model.get_submodule(name)
    for each in HOOKS:
        setattr(new, each, getattr(old, each))
    model.set_submodule(name, new)
