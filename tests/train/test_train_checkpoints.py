"""A training that is interrupted or fails: it ends in the same bits, says what was wrong and keeps its checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bad_files import Bomb
from secateur.core.errors import SecateurError
from secateur.train import FitSettings, fit
from secateur.train.checkpoint import save
from small_training import batches, net, weights

pytestmark = pytest.mark.usefixtures("one_thread")


class KilledError(Exception):
    """Stands for a kill."""


class Pull:
    """A hook with a state of its own: it pulls the first weight towards a running mean."""

    def __init__(self, model: nn.Module) -> None:
        self.weight, self.mean, self.calls = next(model.parameters()), torch.zeros(1), [0, 0]

    def loss(self) -> Tensor:
        return 0.1 * (self.weight - self.mean).square().sum()

    def after_backward(self) -> None:
        self.calls[0] += self.weight.grad is not None

    def after_step(self) -> None:
        self.calls[1] += 1
        self.mean = 0.9 * self.mean + 0.1 * self.weight.detach().mean()

    def plan(self) -> Any:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.calls = state["mean"], list(state["calls"])


CASES: dict[str, tuple[FitSettings, bool]] = {
    "sgd": (FitSettings(epochs=4, lr=0.05), False),
    "adamw, warmup": (FitSettings(epochs=4, optimizer="adamw", lr=0.01, warmup=2), False),
    "bf16, channels_last": (FitSettings(epochs=4, lr=0.05, precision="bf16", channels_last=True), False),
    "dropout, a plain DataLoader": (FitSettings(epochs=4, lr=0.05, seed=3), True),
}


@pytest.mark.parametrize("when", ["after epoch 1", "inside epoch 3", "after the last"])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, case: str, when: str) -> None:
    settings, plain = CASES[case]
    path = tmp_path / "run.checkpoint"

    def given() -> Any:
        pairs = TensorDataset(torch.cat([x for x, _ in batches()]), batches().y)
        return DataLoader(pairs, batch_size=16, shuffle=True) if plain else batches(channels_last=settings.channels_last)

    def train(checkpoint: Path | None, **callbacks: Any) -> tuple[nn.Module, list[dict[str, Any]], Pull]:
        model = net(dropout=0.3 if plain else 0.0)
        hook = Pull(model)
        history = fit(model, given(), settings, hooks=[hook], checkpoint=checkpoint, **callbacks)
        return model, history, hook

    def on_epoch(record: dict[str, Any]) -> None:
        if record["epoch"] == {"after epoch 1": 1, "after the last": 4}.get(when):
            raise KilledError

    def on_step(epoch: int, step: int, steps: int | None) -> None:
        assert steps == 4
        if when == "inside epoch 3" and (epoch, step) == (3, 2):
            raise KilledError

    whole, told, hook = train(None)
    with pytest.raises(KilledError):
        train(path, on_epoch=on_epoch, on_step=on_step)
    torch.manual_seed(99)
    resumed, retold, rehook = train(path)
    assert torch.equal(weights(whole), weights(resumed))
    assert torch.equal(hook.mean, rehook.mean)
    assert rehook.calls == [16, 16]
    assert [r["loss"] for r in told] == [r["loss"] for r in retold]
    assert len(retold) == 4
    assert os.listdir(tmp_path) == ["run.checkpoint"]


def broken(at: int) -> Callable[[Any, Any], Tensor]:
    """Cross-entropy that turns into NaN at its `at`-th call."""
    calls = [0]

    def loss(output: Any, target: Any) -> Tensor:
        calls[0] += 1
        return F.cross_entropy(output, target) * (float("nan") if calls[0] == at else 1.0)

    return loss


def test_a_loss_that_is_not_finite_is_named_and_the_checkpoint_kept(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(SecateurError, match=r"epoch 2, step 3 of training: found a loss of nan"):
        fit(net(), batches(), FitSettings(epochs=3, lr=0.01), loss=broken(7), checkpoint=path)
    kept = torch.load(path, weights_only=True)
    assert kept["epoch"] == 1
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_the_step_is_named_in_the_middle_of_a_long_epoch_too() -> None:
    with pytest.raises(SecateurError, match=r"epoch 1, step 40 of"):
        fit(net(), batches(70 * 16), FitSettings(epochs=1, lr=1e-3), loss=broken(40))


def test_weights_that_blow_up_in_the_last_step_are_found() -> None:
    with pytest.raises(SecateurError, match=r"epoch 1 .*weights that are not finite"):
        fit(net(), batches(16), FitSettings(epochs=1, lr=1e38))


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path, settings = tmp_path / "c", FitSettings(epochs=1, lr=0.01)
    fit(net(), batches(), settings, checkpoint=path)
    good = path.read_bytes()
    with pytest.raises(SecateurError, match=r"other settings: lr 0.01 \(now 0.02\)"):
        fit(net(), batches(), replace(settings, lr=0.02), checkpoint=path)
    with pytest.raises(SecateurError, match="does not fit"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), batches(), settings, checkpoint=path)
    model = net()
    with pytest.raises(SecateurError, match="0 hooks where there are 1"):
        fit(model, batches(), settings, hooks=[Pull(model)], checkpoint=path)
    for damaged in (b"", b"nothing", good[: len(good) // 2], pickle.dumps({"format": 1}, 2)):
        path.write_bytes(damaged)
        with pytest.raises(SecateurError, match="does not fit"):
            fit(net(), batches(), settings, checkpoint=path)
    torch.save({"format": 1, "model": Bomb(tmp_path / "gone off")}, path)
    with pytest.raises(SecateurError, match="does not fit"):
        fit(net(), batches(), settings, checkpoint=path)
    assert not (tmp_path / "gone off").exists()


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SecateurError, match=r"the checkpoint .*: found Not a directory; choose a folder that can be written"):
        fit(net(), batches(16), FitSettings(epochs=1), checkpoint=tmp_path / "file" / "c")


def test_a_checkpoint_the_disk_has_no_room_for_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    save(path, {"epoch": 1})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise RuntimeError("file write failed\nat some line")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SecateurError, match="found file write failed; choose a folder"):
        save(path, {"epoch": 2})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
