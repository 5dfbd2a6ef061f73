"""The hook in the loops of others: the same weights as in three lines of one's own."""

from __future__ import annotations

import copy
import sys
import types
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur import TRP, SecateurError
from secateur.io.vision import torchvision
from secateur.train import lightning_callback, trainer_callback

SETTINGS = {"every": 2, "energy": 0.9, "nuclear": 0.01, "stem": True, "project_momentum": True}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

    def forward(self, x, labels=None):
        logits = self.head(functional.relu(self.conv(x)).mean((2, 3)))
        return {"logits": logits} if labels is None else {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def samples(count: int = 24) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(2, 6, 6, generator=generator), "labels": torch.randint(0, 3, (), generator=generator)}
        for _ in range(count)
    ]


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def own_loop(data, accumulate: int = 1) -> Net:
    """Batches of 4 in order, gradients of `accumulate` of them averaged."""
    model = net()
    optimizer = sgd(model)
    method = TRP(model, **SETTINGS, optimizer=optimizer)
    for number in range(0, len(data), 4):
        rows = data[number : number + 4]
        loss = model(torch.stack([row["x"] for row in rows]), torch.stack([row["labels"] for row in rows]))["loss"]
        (loss / accumulate).backward()
        if (number // 4 + 1) % accumulate == 0:
            method.after_backward()
            optimizer.step()
            method.after_step()
            optimizer.zero_grad()
    return model


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def trainer(model: nn.Module, folder, resume=None, **changes):
    transformers = pytest.importorskip("transformers")
    with suppress(SecateurError):
        torchvision()  # transformers imports it, and it may need help

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    optimizer = sgd(model)
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        **changes,
    }
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    hook = TRP(model, **SETTINGS)
    callback = trainer_callback(hook, resume=resume)
    return InOrder(
        model=model,
        args=transformers.TrainingArguments(**given),
        train_dataset=samples(),
        optimizers=(optimizer, constant),
        callbacks=[callback],
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_trainer_trains_as_ones_own_loop(tmp_path, accumulate):
    model = net()
    trainer(model, tmp_path, gradient_accumulation_steps=accumulate).train()
    assert same(model, own_loop(samples(), accumulate))


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_goes_on_from_a_checkpoint(tmp_path):
    whole, again = net(), net()
    first = trainer(whole, tmp_path, save_strategy="steps", save_steps=3)
    first.train()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
    last = str(tmp_path / "checkpoint-3")
    trainer(again, tmp_path).train(resume_from_checkpoint=last)
    assert same(whole, again)
    elsewhere = net()
    trainer(elsewhere, tmp_path / "other", resume=last).train(resume_from_checkpoint=last)
    assert same(whole, elsewhere)
    with pytest.raises(SecateurError, match="resume=folder"):
        trainer(net(), tmp_path / "other").train(resume_from_checkpoint=last)
    (tmp_path / "checkpoint-3" / "secateur_hook.pt").write_bytes(b"no tensors")
    with pytest.raises(SecateurError, match="damaged"):
        trainer(net(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "checkpoint-3" / "secateur_hook.pt").unlink()
    with pytest.raises(SecateurError, match=r"no secateur_hook\.pt"):
        trainer(net(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.fixture
def lightning(monkeypatch):
    """A stand-in for the package: what matters here is the order in which Lightning 2 calls a callback."""
    module = types.ModuleType("lightning.pytorch")
    module.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", module)
    return module


def as_lightning_does(model, optimizer, callback, data, accumulate: int) -> None:
    """closure: training step, zero_grad, backward; then on_before_optimizer_step, the step, on_train_batch_end."""
    trainer = types.SimpleNamespace(global_step=0, optimizers=[optimizer])
    callback.on_train_start(trainer, model)
    for number in range(0, len(data), 4):
        rows = data[number : number + 4]
        loss = model(torch.stack([row["x"] for row in rows]), torch.stack([row["labels"] for row in rows]))["loss"]
        if (number // 4) % accumulate == 0:
            optimizer.zero_grad()
        (loss / accumulate).backward()
        if (number // 4 + 1) % accumulate == 0:
            callback.on_before_optimizer_step(trainer, model, optimizer)
            optimizer.step()
            trainer.global_step += 1
        callback.on_train_batch_end(trainer, model, None, rows, number // 4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_trains_as_ones_own_loop(lightning, accumulate):
    model, hook = net(), None
    hook = TRP(model, **SETTINGS)
    callback = lightning_callback(hook)
    assert isinstance(callback, lightning.Callback)
    as_lightning_does(model, sgd(model), callback, samples(), accumulate)
    assert same(model, own_loop(samples(), accumulate))
    state = copy.deepcopy(callback.state_dict())
    fresh = lightning_callback(TRP(net(), **SETTINGS))
    fresh.load_state_dict(state)
    assert fresh.hook.step == hook.step


def test_without_the_package_one_sentence_says_so(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SecateurError, match="not installed"):
        lightning_callback(TRP(net(), **SETTINGS))
