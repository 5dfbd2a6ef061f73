"""The training loop.

One step is: batch, forward and loss, hooks, backward, hooks, optimizer, hooks. Nothing in it waits for the device: losses
and hits are kept where they were computed and looked at every `LOOK` steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Hook, Loss
from secateur.core.running import call, device_of, fits, pairs, size_of, to_device
from secateur.train import checkpoint as checkpoints
from secateur.train import losses
from secateur.train.evaluate import as_float, hits_of
from secateur.train.settings import FitSettings, autocast, lr_at, optimizer_for
from secateur.train.share import Share, share

LOOK = 50  # steps between two looks at the losses: a look makes an accelerator finish what it was given

Record = dict[str, Any]
Evaluate = Callable[[nn.Module], Mapping[str, float] | float]


def fit(
    model: nn.Module,
    batches: Batches,
    settings: FitSettings,
    *,
    loss: Loss | None = None,
    hooks: Sequence[Hook] = (),
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, int | None], None] | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    shared: bool = True,
) -> list[Record]:
    """Train `model` in place, where its parameters live; one record per epoch.

    A record holds "epoch" (from 1), "loss" (mean over the images, hooks' part left out), "lr" of the last step, "seconds",
    "train_accuracy" where targets are labels, and "holdout_" + name for every number `evaluate(model)` returns (a bare number
    is "holdout_accuracy"). `loss` is cross-entropy with the settings' smoothing unless given. `on_step(epoch, step, steps)`
    and `on_epoch(record)` report progress; `steps` is None where `batches` has no length.

    With `checkpoint` every finished epoch is on disk; called again with the same arguments, `fit` goes on after the last
    of them and, on one thread, ends with the weights of an uninterrupted run, bit for bit. `batches` with a method
    `epoch(n)` are asked for the n-th pass; others are iterated anew, torch's generator seeded from (settings.seed, n).
    Started by `accelerate launch` or `torchrun`, each process trains on its part of every batch, unless `shared` is False.

    Raises `SecateurError` where the loss or a weight stops being a finite number; the last checkpoint stays.
    """
    group = share(model) if shared else Share(model)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_for(model, settings)
    for hook in hooks:
        if attach := getattr(hook, "attach", None):
            attach(optimizer)
    history = checkpoints.restore(checkpoint, model, optimizer, settings, tuple(hooks)) if checkpoint else []
    device, modes = device_of(model), [(module, module.training) for module in model.modules()]
    run = _Run(model, optimizer, settings, loss or losses.cross_entropy(settings.label_smoothing), tuple(hooks), device, group)
    step = _step_of(run)
    try:
        with _own_generator(device):
            for epoch in range(len(history), settings.epochs):
                record = _epoch(run, step, _pass(batches, epoch, settings.seed), epoch, len_of(batches), on_step)
                if evaluate is not None:
                    record |= _measured(evaluate(model))
                history.append(record)
                if checkpoint and group.rank == 0:
                    checkpoints.save(checkpoint, checkpoints.state_of(model, optimizer, settings, tuple(hooks), history))
                if on_epoch:
                    on_epoch(record)
    finally:
        for module, mode in modes:
            module.training = mode
        if settings.channels_last:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return history


@dataclass(frozen=True)
class _Run:
    """What every step needs."""

    model: nn.Module
    optimizer: optim.Optimizer
    settings: FitSettings
    loss: Loss
    hooks: tuple[Hook, ...]
    device: torch.device
    share: Share
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", [p for g in self.optimizer.param_groups for p in g["params"]])


def _step_of(run: _Run) -> Callable[[Any, Any], tuple[Tensor, Tensor | None]]:
    """Forward and loss as one function of a batch, compiled where that was asked for: (mean loss, hits or None)."""

    def forward(x: Any, target: Any) -> tuple[Tensor, Tensor | None]:
        with autocast(run.settings, run.device):
            output = call(run.share.model, x)
        output = as_float(output)
        return run.loss(output, target), hits_of(output.detach() if isinstance(output, Tensor) else output, target)

    return torch.compile(forward) if run.settings.compile else forward


def _epoch(
    run: _Run,
    forward: Callable[[Any, Any], tuple[Tensor, Tensor | None]],
    batches: Iterable[tuple[Any, Any]],
    epoch: int,
    steps: int | None,
    on_step: Callable[[int, int, int | None], None] | None,
) -> Record:
    """Train one pass; its record."""
    start, settings, lr = time.perf_counter(), run.settings, settings_lr(run.settings, epoch, 0, steps)
    sums = _Sums(run.device, epoch + 1)
    run.model.train()
    for step, (x, target) in enumerate(pairs(batches)):
        x, target = to_device(run.share.part(x), run.device), to_device(run.share.part(target), run.device)
        if settings.channels_last and isinstance(x, Tensor) and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        lr = settings_lr(settings, epoch, step, steps)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        with fits(x, target):
            value, hits = forward(x, target)
        _require_scalar(value)
        total = value
        for hook in run.hooks:
            total = total + hook.loss()
        if not total.requires_grad:
            do = "give a loss(output, target) that has its gradient"
            raise SecateurError("training", "a loss that does not depend on the weights", do)
        run.share.backward(total)
        for hook in run.hooks:
            hook.after_backward()
        if settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(run.parameters, settings.grad_clip)
        run.optimizer.step()
        for hook in run.hooks:
            hook.after_step()
        run.optimizer.zero_grad(set_to_none=True)
        sums.add(value.detach(), hits, size_of(target))
        if on_step:
            on_step(epoch + 1, step + 1, steps)
    sums.look()
    _finite_weights(run.parameters, epoch + 1)
    return {"epoch": epoch + 1, **sums.means(run.share), "lr": lr, "seconds": round(time.perf_counter() - start, 4)}


class _Sums:
    """Losses and hits of one epoch, summed on the device."""

    def __init__(self, device: torch.device, epoch: int) -> None:
        self.epoch, self.count, self.steps = epoch, 0, 0
        self.total = torch.zeros((), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        self.hits: Tensor | None = torch.zeros((), device=device, dtype=torch.int64)
        self.recent = torch.zeros(LOOK, device=device)

    def add(self, loss: Tensor, hits: Tensor | None, n: int) -> None:
        """One step's mean loss over `n` images, and its hits."""
        self.recent[self.steps % LOOK] = loss
        self.total += loss * n
        self.hits = self.hits + hits if self.hits is not None and hits is not None else None
        self.count += n
        self.steps += 1
        if self.steps % LOOK == 0:
            self.look()

    def look(self) -> None:
        """Raise `SecateurError` naming the first of the last steps whose loss is no finite number."""
        new = (self.steps - 1) % LOOK + 1 if self.steps else 0
        finite = self.recent[:new].isfinite()
        if not self.steps:
            raise SecateurError(
                f"epoch {self.epoch} of training",
                "no batches",
                "give (input, target) pairs that can be iterated anew for every epoch",
            )
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            asked = f"epoch {self.epoch}, step {self.steps - new + bad + 1} of training"
            found, do = f"a loss of {float(self.recent[bad])}", "lower the learning rate or check the inputs and weights"
            raise SecateurError(asked, found, f"{do}; the checkpoint of the epoch before, where there is one, is kept")

    def means(self, group: Share) -> Record:
        """Means over the images of all processes."""
        count = torch.tensor(float(self.count), device=self.total.device, dtype=self.total.dtype)
        known = self.hits is not None
        hits = self.hits.to(count.dtype) if self.hits is not None else count * 0
        total, right, n = (float(v) for v in group.sum(torch.stack([self.total, hits, count])))
        return {"loss": total / n, **({"train_accuracy": right / n} if known else {})}


def _require_scalar(value: Any) -> None:
    if not isinstance(value, Tensor) or value.dim():
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise SecateurError("training", f"a loss of {found}", "give a loss(output, target) that returns one number")


def settings_lr(settings: FitSettings, epoch: int, step: int, steps: int | None) -> float:
    """The learning rate of a step; without a known number of steps it changes once per epoch."""
    return lr_at(settings, epoch + (step / steps if steps else 0.0))


def len_of(batches: Any) -> int | None:
    """Batches per pass, or None where that is unknown."""
    try:
        return len(batches)
    except TypeError:
        return None


def _pass(batches: Any, epoch: int, seed: int) -> Iterable[tuple[Any, Any]]:
    """The pass of that number, and torch's generator where an uninterrupted run would have it."""
    torch.manual_seed((seed * 1_000_003 + epoch + 1) % (1 << 63))
    numbered = getattr(batches, "epoch", None)
    return numbered(epoch) if callable(numbered) else batches


@contextmanager
def _own_generator(device: torch.device) -> Iterator[None]:
    """Give the caller's random state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _measured(found: Mapping[str, float] | float) -> Record:
    """What the user's function returned, as "holdout_" entries of the record."""
    if isinstance(found, Mapping):
        return {f"holdout_{name}": float(value) for name, value in found.items()}
    return {"holdout_accuracy": float(found)}


def _finite_weights(parameters: Sequence[Tensor], epoch: int) -> None:
    """The last step of an epoch may break weights without a loss that shows it."""
    norms = torch.stack(torch._foreach_norm([p.detach() for p in parameters]))
    if not bool(norms.isfinite().all()):
        do = "lower the learning rate; the checkpoint of the epoch before, where there is one, is kept"
        raise SecateurError(f"epoch {epoch} of training", "weights that are not finite numbers after its last step", do)
