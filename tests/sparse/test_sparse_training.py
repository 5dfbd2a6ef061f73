"""Where sparse training runs: resumed, in the training loop, compiled and in mixed precision, and in two processes."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from loops import train
from secateur import SecateurError
from secateur.testing import distance
from secateur.train import FitSettings, fit
from secateur.train.sparse import Ramp, Sparse
from sparse_cases import METHODS, SGD, batches, net


def small_batches(count: int):
    return batches(count, dtype=torch.float32)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_has_the_same_masks_and_weights(name):
    whole, data = net(), batches(40)
    optimizer = torch.optim.SGD(whole.parameters(), **SGD)
    hook = METHODS[name](whole, optimizer=optimizer)
    train(whole, hook, data[:17], optimizer)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), hook.state_dict()))
    train(whole, hook, data[17:], optimizer)
    again = net(9)
    second = torch.optim.SGD(again.parameters(), **SGD)
    resumed = METHODS[name](again, optimizer=second)
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    train(again, resumed, data[17:], second)
    assert all(torch.equal(hook.masks[n], resumed.masks[n]) for n in hook.masks)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(SecateurError, match="going on"):
        Sparse(net(), Ramp(0.3, 40, every=3)).load_state_dict(saved[2])


@pytest.mark.parametrize("name", ["rpg b", "rpg a", "rpg st3"])
def test_in_the_training_loop_with_a_checkpoint(name, tmp_path):
    """`fit` hands over its optimizer, and a run that is called again from its checkpoint ends in the same masks."""

    def run(epochs: int, model: nn.Module, stop: int | None = None) -> Sparse:
        hook = METHODS[name](model)

        def halt(epoch: int, step: int, _: int | None) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        settings = FitSettings(epochs=epochs, lr=0.05, schedule="constant")
        try:
            fit(model, small_batches(20), settings, hooks=[hook], checkpoint=tmp_path / f"{stop}.pt", on_step=halt)
        except KeyboardInterrupt:
            return hook
        assert hook.optimizer is not None
        return hook

    first = run(2, net(dtype=torch.float32))
    run(2, net(dtype=torch.float32), 2)
    (tmp_path / "2.pt").rename(tmp_path / "0.pt")
    second = run(2, net(5, torch.float32), 0)
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
    assert distance(first.model, second.model, small_batches(1)[0][0]) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("how", ["compiled", "bf16, channels last"])
def test_the_compiled_step_and_mixed_precision_train_with_masks(how, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    settings = FitSettings(epochs=1, lr=0.02)
    told = {"compile": True} if how == "compiled" else {"precision": "bf16", "channels_last": True}
    for name in ("rpg b", "rpg a", "rpg st3"):
        plain, other = net(dtype=torch.float32), net(dtype=torch.float32)
        hooks = [METHODS[name](plain), METHODS[name](other)]
        fit(plain, small_batches(40), settings, hooks=hooks[:1])
        fit(other, small_batches(40), replace(settings, **told), hooks=hooks[1:])
        assert hooks[0].density == hooks[1].density
        for key, mask in hooks[1].masks.items():
            assert not other.get_parameter(key).detach()[~mask].any()
        if how == "compiled":
            assert all(torch.equal(hooks[0].masks[n], hooks[1].masks[n]) for n in hooks[0].masks)


TOGETHER = """
import atexit, os, sys, torch
from torch import nn
from secateur.data import Batches
from secateur.train import FitSettings, fit
from secateur.train.sparse import rpg, rigl
atexit.register(lambda: torch.distributed.is_initialized() and os._exit(3))  # runs last: a group left open may abort
torch.set_num_threads(1)
torch.manual_seed(0)
net = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 3
out = {}
for name in ("released", "abstract", "st3", "rigl"):
    torch.manual_seed(1)
    model = net()
    if name == "rigl":
        hook = rigl(model, 0.2, 24, every=3, start="random", seed=int(os.environ.get("RANK", 0)))
    else:
        hook = rpg(model, 0.2, 24, reading=name, **({} if name == "st3" else {"every": 3}))
    if name != "rigl":
        torch.manual_seed(2)
    fit(model, Batches(x, y, batch=16, shuffle=True), FitSettings(epochs=6, lr=0.05), hooks=[hook])
    out[name] = {"masks": torch.cat([m.flatten() for m in hook.masks.values()]),
                 "weights": torch.cat([p.detach().flatten() for p in model.parameters()])}
torch.save(out, sys.argv[1])
"""


def test_two_processes_hold_identical_masks(tmp_path: Path) -> None:
    """Also where their random numbers differ: rank 0 decides. Where nothing is random, they are nearly those of one process."""

    def started(out: str, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", TOGETHER, str(tmp_path / out)], env={**os.environ, **env})

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    runs = [started("one")] + [started(f"two{r}", RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(2)]
    try:
        assert [run.wait(timeout=180) for run in runs] == [0, 0, 0]
    finally:
        for run in runs:
            run.kill()
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two0", "two1"))
    for name in first:
        assert torch.equal(first[name]["masks"], second[name]["masks"]), name
        assert torch.equal(first[name]["weights"], second[name]["weights"]), name
    assert (one["released"]["masks"] == first["released"]["masks"]).float().mean() > 0.99
