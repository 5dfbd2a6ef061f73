"""Files: whole or not at all; law 6 (fresh model + file gives the same outputs); the user's own objects."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
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
    atomic,
    build,
    call,
    load,
    load_weights,
    read_json,
    read_metadata,
    read_plan,
    read_text,
    resolve,
    save,
    write_json,
    write_plan,
    write_text,
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


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a disk with `size` bytes left: longer writes fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# files


def test_atomic_writes_bytes_and_text(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as file:
        file.write(b"\x00\n")
    with atomic(str(tmp_path / "b"), "w") as file:
        file.write("é\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\n" and (tmp_path / "b").read_bytes() == "é\n".encode()
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SecateurError("a", "b", "c"), GeneratorExit])
def test_an_interrupted_write_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(BaseException) as caught, atomic(tmp_path / "a", "w") as file:
        file.write("new")
        file.flush()
        raise error
    assert caught.value is error or caught.type is error
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_killed_write_changes_nothing_and_is_swept(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from secateur.io.files import atomic
        with atomic(sys.argv[1], "w") as file:
            file.write("new"); file.flush()
            os.kill(os.getpid(), signal.SIGKILL)"""
    target = tmp_path / "a"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", code, target], check=False, env={**os.environ, "PYTHONPATH": "src"})
    assert done.returncode == -9 and target.read_text() == "old" and len(names(tmp_path)) == 2
    (tmp_path / f".a.{os.getpid()}-99.part").write_text("left by an earlier process of this number")
    (tmp_path / ".b.1-1.part").write_text("of another file")
    (tmp_path / ".a.1-1.part").write_text("of a process that lives")
    write_text(target, "new")
    assert target.read_text() == "new" and names(tmp_path) == [".a.1-1.part", ".b.1-1.part", "a"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with atomic(tmp_path / "a", "w") as first:
        first.write("first")
        with atomic(tmp_path / "a", "w") as second:
            second.write("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first" and names(tmp_path) == ["a"]


def test_a_link_is_followed_and_mode_bits_stay(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    (tmp_path / "dangling").symlink_to("fresh")
    write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "fresh").read_text() == "new"
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "fresh").stat().st_mode == plain.stat().st_mode


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, model: nn.Module) -> None:
    (tmp_path / "a").write_text("old")
    with files_of_at_most(1000), pytest.raises(SecateurError, match="a full disk"):
        write_text(tmp_path / "a", "x" * 10_000)
    with files_of_at_most(1000), pytest.raises(SecateurError, match="a full disk"):
        save(tmp_path / "a", model)
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SecateurError):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: object, *_: object) -> int:
        raise OSError(code, os.strerror(code), os.fspath(path))  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SecateurError, match="read-only disk|no permission"):
        write_text(tmp_path / "a", "new")
    assert names(tmp_path) == []


def test_an_error_of_another_file_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    assert names(tmp_path) == []


def test_text_and_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5]} == json.loads(read_text(tmp_path / "a.json"))
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5]} and names(tmp_path) == ["a.json"]


# saved models


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
    assert torch.equal(again(x), small(x)) and again.conv.out_channels == len(kept)
    assert {n: v.dtype for n, v in again.state_dict().items()} == {n: v.dtype for n, v in small.state_dict().items()}
    assert again.logits.weight is again.table.weight and not again.frozen.requires_grad and again.conv.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    assert read_plan(tmp_path / "a") == plan and names(tmp_path) == ["a"]
    own, other = ({t.untyped_storage().data_ptr() for t in net.state_dict().values()} for net in (again, fresh))
    assert not own & other


def test_a_model_without_plan_and_metadata(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path / "a", model, metadata={"note": 'é "quoted" "sha256":"' + "0" * 64 + '"'})
    again = load(tmp_path / "a", Net().eval())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(again(x), model(x))
    assert read_metadata(tmp_path / "a") == {"note": 'é "quoted" "sha256":"' + "0" * 64 + '"'}
    with pytest.raises(SecateurError, match="without a plan"):
        read_plan(tmp_path / "a")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, model: nn.Module) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, model, Plan(fingerprint(model)), metadata={"y": "1", "x": "2", "z": "3"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_safetensors_reader_opens_it(tmp_path: Path, model: nn.Module) -> None:
    plan = plan_of(model)
    small = plan.apply(model)
    save(tmp_path / "a", small, plan)
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["format"] == "pt" and file.metadata()["plan"] == dumps(plan)
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
    assert again.dtype is getattr(torch, dtype) and again.to(torch.complex64).tolist() == [0, 1, 1, 0]


def test_a_plan_file(tmp_path: Path, model: nn.Module) -> None:
    write_plan(tmp_path / "plan.json", plan_of(model))
    assert read_plan(tmp_path / "plan.json") == plan_of(model)
    again = read_plan(tmp_path / "plan.json").apply(model)
    assert torch.equal(again(torch.ones(1, 3, 4, 4)), plan_of(model).apply(model)(torch.ones(1, 3, 4, 4)))


# weights of others


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


# objects


@pytest.fixture
def user(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom helper import WIDTH\nCOUNT = []\n"
        "def build(width=WIDTH, bias=True):\n    import late\n    return torch.nn.Linear(width, late.OUT, bias=bias)\n"
        "class Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n"
        "model = Net()\n"
    )
    (tmp_path / "late.py").write_text("OUT = 3\n")
    return tmp_path


def test_objects_of_a_file(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"{user / 'net.py'}:build"
    assert build(spec).weight.shape == (3, 4) and build(spec, width=5, bias=False).bias is None
    assert build(f"{user / 'net.py'}:Net").weight.shape == (2, 2)
    assert build(f"{user / 'net.py'}:model") is resolve(f"{user / 'net.py'}:model"), "the file is run once"
    assert resolve(f"{user / 'net.py'}:Net.forward") is torch.nn.Linear.forward
    monkeypatch.chdir(user)
    assert resolve("net.py:build") is resolve(spec) and resolve("helper:WIDTH") == 4
    assert call(resolve(spec), spec, 7).in_features == 7
    (user / "net.py").write_text("def build():\n    return 1\n")
    assert resolve(spec)() == 1, "a changed file is run again"


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(f"def name():\n    return {name!r}\n")
    assert [resolve(f"{tmp_path / name / 'net.py'}:name")() for name in ("a", "b")] == ["a", "b"]


def test_objects_of_modules() -> None:
    assert resolve("torch.nn:Linear") is nn.Linear
    assert resolve("torch.nn.functional:relu") is torch.nn.functional.relu


def test_networks_of_torchvision_and_timm() -> None:
    if find_spec("torchvision") is None or find_spec("timm") is None:
        pytest.skip("the extra 'vision' is not installed")
    net = build("torchvision:squeezenet1_1", num_classes=7)
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    small = build("timm:mobilenetv3_small_050", num_classes=3)
    with torch.no_grad():
        assert small.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_importing_the_package_imports_no_network_library() -> None:
    code = "import secateur.io, sys; sys.exit(any(n in sys.modules for n in ('torchvision', 'timm', 'matplotlib')))"
    env = {**os.environ, "PYTHONPATH": "src"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == 0


# damage


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
    for size in [*range(0, 40), *range(40, len(good), 97), len(good) - 1]:
        (tmp_path / "b").write_bytes(good[:size])
        with pytest.raises(SecateurError):
            load(tmp_path / "b", Net())
    (tmp_path / "b").write_bytes(good + b"\0")
    with pytest.raises(SecateurError):
        load(tmp_path / "b", Net())


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
        try:
            load_weights(tmp_path / "b", Net())
        except SecateurError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600
    assert refused > 60
