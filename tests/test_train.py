"""The training loop, against a loop written out by hand; interruption, failure, evaluation, distillation."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from secateur import data
from secateur.core.errors import SecateurError
from secateur.recipes import zoo
from secateur.train import FitSettings, cross_entropy, distillation, evaluate, fit, taught
from secateur.train.checkpoint import save
from secateur.train.settings import lr_at
from secateur.train.share import Share

SHARED = Path(os.environ.get("SECATEUR_DATA", Path(__file__).parents[2] / "shared" / "data"))
absent = pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no data folder: set SECATEUR_DATA")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


def batches(count: int = 50, **settings: Any) -> data.Batches:
    dice = torch.Generator().manual_seed(7)
    x = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=dice)
    y = torch.randint(0, 10, (count,), generator=dice)
    return replace(data.Batches(x, y, batch=16, augment=data.Augment(crop=1, flip=True), shuffle=True), **settings)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


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


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


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


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "half"}, "known: bf16, float32"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
        ({"momentum": 1.0}, "not including, 1"),
        ({"epochs": -1}, "at least 0"),
        ({"epochs": 1.5}, "whole number"),
        ({"grad_clip": -1.0}, "above 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SecateurError, match=told):
        FitSettings(**wrong)


def test_nothing_to_train_and_nothing_to_train_on() -> None:
    with pytest.raises(SecateurError, match="no parameter"):
        fit(nn.Flatten(), batches(), FitSettings(epochs=1))
    with pytest.raises(SecateurError, match="no batches"):
        fit(net(), [], FitSettings(epochs=1))
    with pytest.raises(SecateurError, match="no batches"):
        evaluate(net(), [])


def test_evaluation_equals_numpy_and_changes_nothing() -> None:
    model, given = net().train(), batches().plain()
    model[1].eval()
    before = weights(model)
    found = evaluate(model, given)
    reference = net().eval()
    output = np.concatenate([reference(x).detach().double().numpy() for x, _ in given])
    labels = given.y.numpy()
    shifted = output - output.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(50), labels]
    assert found["accuracy"] == pytest.approx((output.argmax(1) == labels).mean())
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert torch.equal(weights(model), before)
    assert model.training
    assert not model[1].training


def test_evaluation_of_a_regression_has_no_accuracy_and_nan_is_an_error() -> None:
    model, pairs = nn.Linear(3, 1), [(torch.ones(4, 3), torch.zeros(4, 1))]
    found = evaluate(model, pairs, loss=F.mse_loss)
    assert list(found) == ["loss"]
    assert found["loss"] == pytest.approx(float(model(torch.ones(1, 3)).detach().square()), rel=1e-5)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(SecateurError, match="not numbers"):
        evaluate(model, pairs, loss=F.mse_loss)
    history = fit(nn.Linear(3, 1), pairs, FitSettings(epochs=1), loss=F.mse_loss, evaluate=lambda model: 0.5)
    assert "train_accuracy" not in history[0]
    assert history[0]["holdout_accuracy"] == 0.5


def test_distillation_equals_the_equation() -> None:
    dice = np.random.default_rng(0)
    student, teacher, labels = dice.normal(size=(5, 4)), dice.normal(size=(5, 4)), dice.integers(0, 4, 5)

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    p, q, alpha, temperature = softmax(teacher / 3), softmax(student / 3), 0.7, 3.0
    wanted = alpha * temperature**2 * (p * np.log(p / q)).sum(1).mean()
    wanted += (1 - alpha) * -np.log(softmax(student)[np.arange(5), labels]).mean()
    target = (torch.tensor(labels), torch.tensor(teacher))
    assert float(distillation(alpha, temperature)(torch.tensor(student), target)) == pytest.approx(wanted)
    with pytest.raises(SecateurError, match="alpha"):
        distillation(1.5)


def test_a_student_is_taught_by_what_the_teacher_says_in_evaluation_mode() -> None:
    teacher, given = net(1, dropout=0.5), batches()
    lesson = taught(given, teacher)
    (x, (y, answer)), (x2, y2) = next(lesson.epoch(3)), next(given.epoch(3))
    assert torch.equal(x, x2)
    assert torch.equal(y, y2)
    assert torch.equal(answer, teacher.eval()(x))
    assert not answer.requires_grad
    assert len(lesson) == 4
    history = fit(net(), lesson, FitSettings(epochs=1, lr=0.01), loss=distillation())
    assert 0 <= history[0]["train_accuracy"] <= 1


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


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar_resnet20_a", 269_722), ("cifar_resnet56_a", 853_018), ("vgg16_bn_cifar", 14_991_946)],
)
def test_zoo_networks_have_the_published_sizes(name: str, parameters: int) -> None:
    model = zoo.build(name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_zoo_names() -> None:
    assert zoo.build("digits_resnet", blocks=2)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(SecateurError, match="did you mean 'cifar_resnet56_a'"):
        zoo.build("cifar_resnet56a")
    for wrong in ({"depth": 21}, {"option": "c"}):
        with pytest.raises(SecateurError, match="no such"):
            zoo.cifar_resnet(**wrong)  # type: ignore[arg-type]


@pytest.mark.data
@absent
@pytest.mark.parametrize(
    ("name", "how", "accuracy"),
    [
        ("resnet20_a", "imagenet", 0.9173),
        ("resnet20_b", "half", 0.9171),
        ("resnet56_a", "imagenet", 0.9339),
    ],
)
@pytest.mark.parametrize("images", [1000, pytest.param(10000, marks=pytest.mark.slow)])
def test_published_weights_reach_their_published_accuracy(name: str, how: str, accuracy: float, images: int) -> None:
    """On all test images to the digit, on the first of them within the error of so few."""
    from safetensors.torch import load_file

    model = zoo.build(f"cifar_{name}")
    model.load_state_dict(load_file(SHARED / "weights" / f"cifar10_{name}.safetensors"))
    test = data.loaders(data.cifar10(SHARED).normalised(how), data.BatchSettings(holdout=0)).test
    within = 1e-4 if images == 10000 else 2 * (accuracy * (1 - accuracy) / images) ** 0.5
    assert evaluate(model, test.first(images))["accuracy"] == pytest.approx(accuracy, abs=within)


def test_cross_entropy_smooths() -> None:
    output, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    chances = np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum()
    assert float(cross_entropy(0.2)(output, target)) == pytest.approx(-(0.9 * np.log(chances[0]) + 0.1 * np.log(chances[1])))
