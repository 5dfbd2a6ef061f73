"""The training loop, against a loop written out by hand: learning rates, what it leaves alone, compiled, in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.train import FitSettings, fit
from secateur.train.settings import lr_at
from secateur.train.share import Share
from small_training import batches, net, weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_fit_equals_the_loop_written_out(name: str, kind: type[torch.optim.Optimizer]) -> None:
    settings = FitSettings(epochs=2, optimizer=name, lr=0.01, warmup=1, label_smoothing=0.1, grad_clip=0.5)
    ours, theirs, given = net(), net(), batches()
    history = fit(ours, given, settings)
    extra = {"momentum": 0.9, "nesterov": True} if kind is torch.optim.SGD else {}
    optimizer = kind(theirs.parameters(), lr=1.0, weight_decay=5e-4, **extra)  # type: ignore[call-arg]
    wanted = []
    for epoch in range(2):
        losses, hits = [], 0
        for step, (x, y) in enumerate(given.epoch(epoch)):
            done = epoch + step / 4
            rate = 0.01 * (done + 0.01) / 1.01 if epoch == 0 else 0.01 * 0.5 * (1 + np.cos(np.pi * (done - 1)))
            optimizer.param_groups[0]["lr"] = float(rate)
            optimizer.zero_grad()
            output = theirs(x)
            loss = F.cross_entropy(output, y, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
            losses.append(float(loss.detach()) * len(x))
            hits += int((output.argmax(1) == y).sum())
        wanted.append((sum(losses) / 50, hits / 50))
    assert (weights(ours) - weights(theirs)).abs().max() < 1e-5
    assert np.allclose([(r["loss"], r["train_accuracy"]) for r in history], wanted, rtol=1e-4)
    assert [r["epoch"] for r in history] == [1, 2]
    assert history[-1]["seconds"] > 0


@pytest.mark.parametrize(
    ("settings", "progress", "wanted"),
    [
        (FitSettings(epochs=10, lr=0.2), 5.0, 0.1),
        (FitSettings(epochs=10, lr=0.2, warmup=2), 2.0, 0.2),
        (FitSettings(epochs=10, lr=0.2, warmup=2), 6.0, 0.1),
        (FitSettings(epochs=10, lr=0.2, schedule="step"), 4.99, 0.2),
        (FitSettings(epochs=10, lr=0.2, schedule="step"), 5.0, 0.02),
        (FitSettings(epochs=10, lr=0.2, schedule="step"), 7.5, 0.002),
        (FitSettings(epochs=10, lr=0.2, schedule="constant"), 9.9, 0.2),
    ],
)
def test_learning_rates_by_hand(settings: FitSettings, progress: float, wanted: float) -> None:
    assert lr_at(settings, progress) == pytest.approx(wanted)


def test_fit_leaves_mode_layout_and_random_state_as_they_were() -> None:
    model = net().eval()
    model[1].train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(model, batches(), FitSettings(epochs=1, channels_last=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == [False, False, True, False, False, False, False, False]
    assert all(p.is_contiguous() for p in model.parameters())


class Reads(TorchDispatchMode):
    """Counts how often a value is read off the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device() -> None:
    counts = []
    for images in (2 * 16, 45 * 16):
        with Reads() as reads:
            fit(net(), batches(images), FitSettings(epochs=1, lr=1e-3))
        counts.append(reads.count)
    assert counts[0] == counts[1] < 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_compiled_step_trains_alike(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    settings = FitSettings(epochs=1, lr=0.01)
    eager, compiled = net(), net()
    fit(eager, batches(48), settings)
    fit(compiled, batches(48), replace(settings, compile=True))
    assert (weights(eager) - weights(compiled)).abs().max() < 1e-4


def test_the_shares_of_a_batch_are_the_batch() -> None:
    batch = {"x": torch.arange(5), "both": (torch.arange(10, 15), [torch.arange(5)]), "name": "mine"}
    parts = [Share(nn.Identity(), rank, 2).part(batch) for rank in range(2)]
    assert [part["x"].tolist() for part in parts] == [[0, 2, 4], [1, 3]]
    assert [part["both"][0].tolist() for part in parts] == [[10, 12, 14], [11, 13]]
    assert [part["both"][1][0].tolist() for part in parts] == [[0, 2, 4], [1, 3]]
    assert [part["name"] for part in parts] == ["mine", "mine"]


ALONE = """
import os, sys, torch
from torch import nn
from secateur.data import Batches
from secateur.train import FitSettings, fit
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
x, y = torch.randn(64, 3, 2, 2), torch.arange(64) % 3
history = fit(model, Batches(x, y, batch=16, shuffle=True), FitSettings(epochs=2, lr=0.1))
torch.save({"weights": torch.cat([p.detach().flatten() for p in model.parameters()]), "loss": history[-1]["loss"]}, sys.argv[1])
os._exit(0)  # a thread of gloo's that lets go of a tensor while Python ends would abort the process
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    def started(out: str, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", ALONE, str(tmp_path / out)], env={**os.environ, **env})

    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    runs = [started("one")] + [started(f"two{r}", RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(2)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two0", "two1"))
    assert torch.equal(first["weights"], second["weights"])
    assert (one["weights"] - first["weights"]).abs().max() < 1e-5
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-4)
