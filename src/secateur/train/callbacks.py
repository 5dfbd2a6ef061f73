"""Hooks in the loops of others: a Lightning callback and a transformers one, each a few lines over the same hook.

A hook whose `loss()` is not 0 (that of `TRP` is) has to be added to the loss where the loss is made: in `training_step` or
`compute_loss`. Gradients that are accumulated over several batches count as one step, as they do for the optimizer.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from secateur.core.errors import SecateurError
from secateur.core.protocols import Hook
from secateur.train.checkpoint import save

FILE = "secateur_hook.pt"
"""Tensors, numbers and text: read back without running code from it."""


def lightning_callback(hook: Hook) -> Any:
    """A `lightning.pytorch.Callback` that calls `hook` around every optimizer step: ``Trainer(callbacks=[it])``.

    Its state goes into Lightning's checkpoints and comes back from them. Raises `SecateurError` where Lightning is missing.
    """

    class HookCallback(_base("lightning", "lightning.pytorch", "pytorch_lightning")):  # type: ignore[misc]
        def __init__(self) -> None:
            self.hook, self._steps = hook, 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._steps = trainer.global_step
            _attach(hook, trainer.optimizers[0])

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            hook.after_backward()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step > self._steps:  # not while gradients accumulate
                self._steps = trainer.global_step
                hook.after_step()

        def state_dict(self) -> dict[str, Any]:
            return hook.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            hook.load_state_dict(state_dict)

    return HookCallback()


def trainer_callback(hook: Hook, *, resume: str | Path | None = None) -> Any:
    """A `transformers.TrainerCallback` that calls `hook` around every optimizer step: ``Trainer(callbacks=[it])``.

    Trainer clips gradients before it asks. The hook's state lies in every checkpoint folder and is read when training
    goes on from one: from that of the same step in `output_dir`, for callbacks are not told which it was, or from the folder
    `resume`, where that is another. Raises `SecateurError` where transformers is missing, or a checkpoint has no state of the
    hook.
    """

    class HookCallback(_base("transformers", "transformers")):  # type: ignore[misc]
        def __init__(self) -> None:
            self.hook = hook

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            _attach(hook, rest["optimizer"])
            if state.global_step:
                hook.load_state_dict(_read(Path(resume) / FILE if resume else _place(args, state)))

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            hook.after_backward()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            hook.after_step()

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.is_world_process_zero:
                save(_place(args, state), hook.state_dict())

    return HookCallback()


def _attach(hook: Hook, optimizer: Any) -> None:
    if attach := getattr(hook, "attach", None):
        attach(optimizer)


def _base(package: str, *modules: str) -> Any:
    """The class callbacks of `package` derive from, out of the first of `modules` that is installed."""
    name = "TrainerCallback" if package == "transformers" else "Callback"
    for module in modules:
        try:
            return getattr(__import__(module, fromlist=[name]), name)
        except ImportError:
            continue
    raise SecateurError(f"a callback for {package}", f"{package} is not installed", f"pip install {package}")


def _place(args: Any, state: Any) -> Path:
    """Where Trainer keeps the checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE


def _read(path: Path) -> dict[str, Any]:
    asked, do = (
        f"going on from the checkpoint {str(path.parent)!r}",
        "start anew, or give the folder that training goes on from, as in trainer_callback(hook, resume=folder)",
    )
    if not path.is_file():
        raise SecateurError(asked, f"no {path.name} in it", do)
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise SecateurError(asked, f"a damaged {path.name} ({str(error).splitlines()[0][:80]})", do) from error
