"""Training inside a run: the recipe's settings, a teacher, a checkpoint, the history, and the best epoch on the holdout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.protocols import Hook
from secateur.io import artefact
from secateur.recipes.parts import Parts, guarded
from secateur.recipes.progress import Progress
from secateur.recipes.schema import Fit
from secateur.train import FitSettings, cross_entropy, distillation, taught
from secateur.train import fit as train

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Watch:
    """What goes on beside one training: where it goes on from, who is told, and where the best epoch is kept."""

    phase: str
    seed: int
    checkpoint: Path
    progress: Progress
    on_records: Callable[[list[Record]], None]
    best: Path | None = None


def settings_of(fit: Fit, seed: int) -> FitSettings:
    """`fit` as the training loop takes it. Raises `SecateurError` for an optimizer torch does not have."""
    named = {name: value for name, value in asdict(fit).items() if name not in ("teacher", "temperature")}
    return FitSettings(**named, seed=seed)


def tune(
    parts: Parts, model: nn.Module, fit: Fit, watch: Watch, *, teacher: nn.Module | None = None, hooks: Sequence[Hook] = ()
) -> list[Record]:
    """Train `model` in place, going on from the checkpoint where there is one; one record per epoch.

    The holdout, where there is one, is judged after every epoch, and the model saved at `watch.best` while none was
    better. A `teacher` adds distillation with the weight `fit.teacher`.
    """
    settings = settings_of(fit, watch.seed)
    keeper = Keeper(parts, watch, fit.epochs)
    batches, loss = parts.train, parts.loss
    if parts.plain_loss:
        loss = cross_entropy(fit.label_smoothing)
    if teacher is not None:
        batches = taught(batches, teacher, precision=fit.precision)
        loss = distillation(fit.teacher, fit.temperature, fit.label_smoothing)
    if not fit.compile:
        loss = guarded(loss, "loss of training")
    records = train(
        model,
        batches,
        settings,
        loss=loss,
        hooks=hooks,
        evaluate=keeper.judge if parts.holdout is not None else None,
        checkpoint=watch.checkpoint,
        on_step=keeper.on_step,
        on_epoch=keeper.on_epoch,
    )
    watch.on_records(records)
    return records


class Keeper:
    """Follows one training: which epoch it is, what it recorded, and which epoch was best."""

    def __init__(self, parts: Parts, watch: Watch, epochs: int) -> None:
        self.parts, self.watch, self.epochs, self.epoch, self.told = parts, watch, epochs, 0, ""
        self.records: list[Record] = []

    def on_step(self, epoch: int, step: int, steps: int | None) -> None:
        """Move the bar."""
        self.epoch = epoch
        steps = steps or step  # unknown for batches without a length: then the bar moves by whole epochs
        done = (epoch - 1) * steps + step
        self.watch.progress(self.watch.phase, done, self.epochs * steps, f"epoch {epoch} of {self.epochs}{self.told}")

    def on_epoch(self, record: Record) -> None:
        """Write the history as it stands."""
        self.records.append(record)
        accuracy = record.get("holdout_accuracy", record.get("train_accuracy"))
        self.told = f", loss {record['loss']:.3g}" + ("" if accuracy is None else f", accuracy {accuracy:.1%}")
        self.watch.on_records(self.records)

    def judge(self, model: nn.Module) -> dict[str, float]:
        """Accuracy and loss on the holdout. Comes before the checkpoint of the epoch: a run killed in between repeats both."""
        assert self.parts.holdout is not None
        found = self.parts.judge(model, self.parts.holdout)
        score = found.get("accuracy", -found.get("loss", 0.0))
        best = self.watch.best
        if best is not None:
            known = artefact.read_metadata(best) if best.exists() else {}
            better = not known or score > float(known["score"]) or int(known["epoch"]) == self.epoch
            if better:
                artefact.save(best, model, metadata={"epoch": str(self.epoch), "score": repr(score)})
        return found
