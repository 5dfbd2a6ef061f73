"""Law 6 (fresh model + file gives the same outputs), weights of others, and damage that never goes unseen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from secateur.core.axis import Slot
from secateur.core.codec import dumps
from secateur.core.errors import SecateurError
from secateur.core.plan import Cut, Keep, Plan
from secateur.io import (
    load,
    load_weights,
    read_metadata,
    read_plan,
    save,
    write_plan,
)
from secateur.surgery import fingerprint


class Net(nn.Module):
    """A net with all that a file has to carry: buffers, a scalar, a flatten, tied tensors, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 5)
        self.table = nn.Embedding(5, 6)
        self.logits = nn.Linear(6, 5, bias=False)
        self.logits.weight = self.table.weight
        self.frozen = nn.Parameter(torch.rand(()), requires_grad=False)
        self.register_buffer("offset", torch.arange(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(torch.relu(self.norm(self.conv(x))).flatten(1)) * self.frozen
        return y + self.logits(self.table(self.offset)).mean()


def plan_of(model: nn.Module, kept: tuple[int, ...] = (0, 2, 3, 7)) -> Plan:
    """The cut of the net's eight channels."""
    scale = [Slot(f"norm.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")]
    read = Slot("head.weight", 1, step=16, loops=((16, 1),), role="read")
    return Plan(fingerprint(model), (Keep((Cut("conv", 8, kept, (Slot("conv.weight", 0, role="write"), *scale, read)),)),))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Net().train()
    net(torch.randn(8, 3, 4, 4))  # moves the running statistics
    return net.eval()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kept", [(0, 2, 3, 7), (5,), tuple(range(8))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fresh_model_and_file_give_the_same_outputs(tmp_path: Path, model: nn.Module, kept: tuple, dtype: torch.dtype) -> None:
    plan = plan_of(model, kept)
    small = plan.apply(model.to(dtype))
    save(tmp_path / "a", small, plan)
    fresh = Net().eval()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    again = load(tmp_path / "a", fresh)
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    assert torch.equal(again(x), small(x))
    assert again.conv.out_channels == len(kept)
    assert {n: v.dtype for n, v in again.state_dict().items()} == {n: v.dtype for n, v in small.state_dict().items()}
    assert again.logits.weight is again.table.weight
    assert not again.frozen.requires_grad
    assert again.conv.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    assert read_plan(tmp_path / "a") == plan
    assert names(tmp_path) == ["a"]
    own, other = ({t.untyped_storage().data_ptr() for t in net.state_dict().values()} for net in (again, fresh))
    assert not own & other


def test_a_model_without_plan_and_metadata(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path / "a", model, metadata={"note": 'é "quoted" "sha256":"' + "0" * 64 + '"'})
    fresh = Net().eval()
    first = fresh.conv.weight.clone()
    again = load(tmp_path / "a", fresh)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(again(x), model(x))
    assert torch.equal(fresh.conv.weight, first)
    assert read_metadata(tmp_path / "a") == {"note": 'é "quoted" "sha256":"' + "0" * 64 + '"'}
    with pytest.raises(SecateurError, match="without a plan"):
        read_plan(tmp_path / "a")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, model: nn.Module) -> None:
    own = {"y": "1", "x": "2", "z": "3"}
    save(tmp_path / "a", model, Plan(fingerprint(model)), metadata=own)
    save(tmp_path / "b", model, Plan(fingerprint(model)), metadata=dict(reversed(own.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_safetensors_reader_opens_it(tmp_path: Path, model: nn.Module) -> None:
    plan = plan_of(model)
    small = plan.apply(model)
    save(tmp_path / "a", small, plan)
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["plan"] == dumps(plan)
        assert set(file.keys()) == set(small.state_dict()) - {"logits.weight"}
        assert all(torch.equal(file.get_tensor(name), small.state_dict()[name]) for name in file.keys())  # noqa: SIM118


def test_layouts_and_shared_storage(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    whole = torch.arange(12.0)
    net.register_buffer("first", whole[:6])
    net.register_buffer("second", whole[4:10].view(2, 3))
    net.register_buffer("turned", whole.view(3, 4).t())
    net.register_buffer("none", torch.empty(0, 3))
    net.register_buffer("nothing", torch.empty(0, 3))
    save(tmp_path / "a", net)
    other = nn.Sequential(nn.Conv2d(4, 4, 3))
    for name, buffer in net.named_buffers():
        other.register_buffer(name, torch.zeros_like(buffer))
    again = load(tmp_path / "a", other)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "int8", "uint16", "bool", "complex64", "int64"])
def test_every_dtype_is_kept(tmp_path: Path, dtype: str) -> None:
    def net() -> nn.Module:
        holder = nn.Module()
        holder.register_buffer("x", torch.tensor([0, 1, 1, 0]).to(getattr(torch, dtype)))
        return holder

    save(tmp_path / "a", net())
    again = load(tmp_path / "a", net()).x
    assert again.dtype is getattr(torch, dtype)
    assert again.to(torch.complex64).tolist() == [0, 1, 1, 0]


def test_a_plan_file(tmp_path: Path, model: nn.Module) -> None:
    write_plan(tmp_path / "plan.json", plan_of(model))
    assert read_plan(tmp_path / "plan.json") == plan_of(model)
    again = read_plan(tmp_path / "plan.json").apply(model)
    assert torch.equal(again(torch.ones(1, 3, 4, 4)), plan_of(model).apply(model)(torch.ones(1, 3, 4, 4)))


def checkpoints(folder: Path, model: nn.Module) -> Iterator[Path]:
    state = model.state_dict()
    shapes = {
        "bare": state,
        "wrapped": {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        "model": {"model": state, "args": ["x"]},
        "parallel": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "compiled": {f"module._orig_mod.{name}": value for name, value in state.items()},
        "half a tie": {name: value for name, value in state.items() if name != "table.weight"},
    }
    for name, value in shapes.items():
        torch.save(value, folder / name)
        yield folder / name
    torch.save(state, folder / "old", _use_new_zipfile_serialization=False)
    yield folder / "old"
    safetensors.torch.save_model(model, str(folder / "hub"))
    yield folder / "hub"
    save(folder / "own", model)
    yield folder / "own"


def test_weights_of_others(tmp_path: Path, model: nn.Module) -> None:
    x = torch.randn(2, 3, 4, 4)
    for path in checkpoints(tmp_path, model):
        fresh = Net().eval()
        first = fresh.conv.weight.clone()
        assert torch.equal(load_weights(path, fresh)(x), model(x)), path.name
        assert torch.equal(fresh.conv.weight, first)


def test_a_model_whose_own_names_begin_like_a_wrapper(tmp_path: Path) -> None:
    net = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(net.state_dict(), tmp_path / "a")
    again = load_weights(tmp_path / "a", nn.ModuleDict({"module": nn.Linear(2, 2)}))
    assert torch.equal(again["module"].weight, net["module"].weight)


def test_the_dtype_of_the_model_stays(tmp_path: Path, model: nn.Module) -> None:
    torch.save({name: value.half() for name, value in model.state_dict().items()}, tmp_path / "a")
    assert load_weights(tmp_path / "a", Net()).conv.weight.dtype is torch.float32


def test_no_damaged_bit_goes_unseen(tmp_path: Path, model: nn.Module) -> None:
    plan = plan_of(model, (1,))
    save(tmp_path / "a", plan.apply(model), plan)
    good = (tmp_path / "a").read_bytes()
    rng, fresh = np.random.default_rng(0), Net()
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "b").write_bytes(bad)
        with pytest.raises(SecateurError) as caught:
            load(tmp_path / "b", fresh)
        assert "\n" not in str(caught.value)


def test_no_truncation_goes_unseen(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path / "a", model)
    good = (tmp_path / "a").read_bytes()
    for size in [*range(40), *range(40, len(good), 97), len(good) - 1]:
        (tmp_path / "b").write_bytes(good[:size])
        with pytest.raises(SecateurError):
            load(tmp_path / "b", Net())
    (tmp_path / "b").write_bytes(good + b"\0")
    with pytest.raises(SecateurError):
        load(tmp_path / "b", Net())


def refusal(path: Path) -> str:
    try:
        load_weights(path, Net())
    except SecateurError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["bare", "old", "hub"])
def test_damaged_weights_are_one_sentence_or_values(tmp_path: Path, model: nn.Module, kind: str) -> None:
    """Formats without a checksum: damage that is seen is a sentence, never another exception."""
    good = next(path for path in checkpoints(tmp_path, model) if path.name == kind).read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for trial in range(150):
        bad = bytearray(good)
        if trial % 3 == 0:
            bad = bad[: int(rng.integers(len(bad)))]
        else:
            for _ in range(trial % 3 * 4):
                bad[int(rng.integers(min(len(bad), 2000)))] ^= 1 << int(rng.integers(8))
        (tmp_path / "b").write_bytes(bad)
        sentence = refusal(tmp_path / "b")
        refused += bool(sentence)
        assert "\n" not in sentence
        assert len(sentence) < 600
    assert refused > 60


def test_weights_without_the_counters_of_batch_norm_load(tmp_path):
    """Files older than the counter, and many after it, do without `num_batches_tracked`."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.nn.init.normal_(model[1].running_mean)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt")
    again = load_weights(tmp_path / "old.pt", torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)))
    assert torch.equal(again[1].running_mean, model[1].running_mean)


class Versioned(nn.Linear):
    """A layer that asks which version of it saved the weights, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):  # type: ignore[no-untyped-def]
        if local_metadata.get("version") != 2:
            raise ValueError("no version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_a_module_that_asks_for_its_version_is_told(tmp_path: Path) -> None:
    model = nn.Sequential(Versioned(3, 2))
    save(tmp_path / "w.safetensors", model, Plan(fingerprint(model)))
    again = load(tmp_path / "w.safetensors", into=nn.Sequential(Versioned(3, 2)))
    assert torch.equal(again[0].weight, model[0].weight)
