"""Everything a killed training run needs to go on as if nothing had happened."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from secateur.core.errors import SecateurError
from secateur.core.protocols import Hook
from secateur.core.replacing import reason, replacing
from secateur.core.restore import restoring
from secateur.train.settings import FitSettings, same

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that at every moment `path` is either the old file or the new one, whole."""

    def explain(error: Exception) -> SecateurError:
        return SecateurError(f"the checkpoint {path}", reason(error), "choose a folder that can be written and has room")

    try:
        with replacing(path, explain=explain) as file:
            torch.save(state, file)
    except RuntimeError as error:  # how torch reports a full disk
        raise explain(error) from error


def state_of(
    model: nn.Module, optimizer: optim.Optimizer, settings: FitSettings, hooks: tuple[Hook, ...], history: list[dict[str, Any]]
) -> dict[str, Any]:
    """What `save` writes after an epoch: tensors, numbers and text only."""
    return {
        "format": FORMAT,
        "epoch": len(history),
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "hooks": [hook.state_dict() for hook in hooks],
        "history": history,
    }


def restore(
    path: Path, model: nn.Module, optimizer: optim.Optimizer, settings: FitSettings, hooks: tuple[Hook, ...]
) -> list[dict[str, Any]]:
    """The history up to the checkpoint, after model, optimizer and hooks went back to its state; [] where there is none.

    Raises `SecateurError` for a damaged file, another model or other settings: going on would silently train something else.
    """
    if not path.exists():
        return []
    asked, do = f"the checkpoint {path}", "delete it to start anew"
    try:
        file = path.open("rb")
    except OSError as error:
        raise SecateurError(asked, error.strerror or str(error), "check the path and its permissions") from error
    try:
        with file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        _fits(state, asked, settings, hooks)
        with restoring(model):  # or a second start would train from its weights
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            for hook, hook_state in zip(hooks, state["hooks"], strict=True):
                hook.load_state_dict(hook_state)
        return list(state["history"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SecateurError(asked, f"a file that does not fit this run ({first})", do) from error


def _fits(state: dict[str, Any], asked: str, settings: FitSettings, hooks: tuple[Hook, ...]) -> None:
    """Raise `SecateurError` where `state` is of another format, of other settings, or has other hooks."""
    if state["format"] != FORMAT:
        raise SecateurError(asked, f"format {state['format']} where {FORMAT} is known", "delete it to start anew")
    if names := same(settings, state["settings"]):
        told = ", ".join(f"{name} {state['settings'].get(name)!r} (now {getattr(settings, name)!r})" for name in names)
        raise SecateurError(asked, f"other settings: {told}", "delete it to start anew, or use its settings")
    if len(state["hooks"]) != len(hooks):
        found = f"{len(state['hooks'])} hooks where there are {len(hooks)}"
        raise SecateurError(asked, found, "delete it to start anew, or use the same hooks")
