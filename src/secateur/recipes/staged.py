"""Fine-tuning in stages inside a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.protocols import Hook
from secateur.recipes.parts import Parts
from secateur.recipes.progress import Progress
from secateur.recipes.schema import Stage, trained
from secateur.recipes.tune import Keeper, Watch
from secateur.train import fit_stages

Write = Callable[[str, list[dict[str, Any]]], None]
"""(name of the stage, its records so far)."""


def tune_in_stages(
    parts: Parts,
    model: nn.Module,
    stages: Sequence[Stage],
    *,
    teacher: nn.Module,
    seed: int,
    checkpoint: Path,
    best: Path | None,
    progress: Progress,
    write: Write,
    hooks: Sequence[Hook] = (),
) -> None:
    """Train `model` in place, going on from the checkpoints where there are any; each stage is told to `write` by its name.

    The holdout, where there is one, is judged after every epoch; the model of the last stage's best epoch is saved at
    `best`, where there is such a path. `hooks` act in all stages.
    """
    records: dict[str, list[dict[str, Any]]] = {stage.name: [] for stage in stages}
    total = max(sum(stage.epochs for stage in stages), 1)
    watches = {
        stage.name: Watch(stage.name, seed, checkpoint, progress, lambda _: None, best if stage is stages[-1] else None)
        for stage in stages
    }
    keepers = {stage.name: Keeper(parts, watches[stage.name], stage.epochs) for stage in stages}
    now = stages[0].name if stages else ""

    def on_step(stage: Any, epoch: int, step: int, steps: int | None) -> None:
        nonlocal now
        now, keepers[stage.name].epoch = stage.name, epoch
        before = sum(len(known) for known in records.values())
        progress("finetune", before, total, f"stage {stage.name}, epoch {epoch}")

    def on_epoch(record: dict[str, Any]) -> None:
        name = record["stage"]
        records[name].append(_plain(record))
        write(name, records[name])

    def judge(network: nn.Module) -> dict[str, float]:
        return keepers[now].judge(network)

    found = fit_stages(
        model,
        parts.train,
        [trained(stage, seed) for stage in stages],
        teacher=teacher,
        loss=None if parts.plain_loss else parts.loss,
        evaluate=judge if parts.holdout is not None else None,
        hooks=hooks,
        checkpoint=checkpoint,
        on_step=on_step,
        on_epoch=on_epoch,
    )
    for stage in stages:
        write(stage.name, [_plain(record) for record in found if record["stage"] == stage.name])


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "stage"}
