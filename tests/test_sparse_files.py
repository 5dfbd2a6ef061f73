"""Files of sparse models: thirty times smaller at 98 % zeros, every bit kept, and refused in a sentence where forged."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from scripts import module
from secateur import Mask, Plan, SecateurError, support
from secateur.core.codec import to_json
from secateur.core.plan import mask
from secateur.io import artefact, container, packing
from secateur.recipes import zoo
from secateur.surgery import fingerprint, masks_after
from secateur.train import sparse
from test_mask import random_masks


def wide_net(width: int = 192) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.Linear(width, 10))


def same_bits(one: nn.Module, two: nn.Module) -> None:
    """Names, dtypes, shapes and every bit, of zeros and NaN too."""
    states = one.state_dict(), two.state_dict()
    assert list(states[0]) == list(states[1])
    for first, second in zip(states[0].values(), states[1].values(), strict=True):
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def as_trained(name: str) -> nn.Module:
    """A fresh network whose batch norms and biases are noise, as after a training: these deflate least."""
    torch.manual_seed(0)
    model = zoo.build(name)
    for value in model.state_dict().values():
        if value.dim() < 2:
            value.copy_(torch.randn(value.shape).abs() if value.is_floating_point() else torch.tensor(78_200))
    return model


@pytest.mark.parametrize("name", ["cifar_resnet20_a", "cifar_resnet56_a"])
def test_a_small_network_at_98_percent_is_thirty_times_smaller(tmp_path, name):
    model = as_trained(name)
    plan = sparse.one_shot(model, 0.02)
    small = plan.apply(model)
    secateur.save(tmp_path / "dense.safetensors", model)
    secateur.save(tmp_path / "sparse.safetensors", small, plan)
    dense, less = ((tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("dense", "sparse"))
    assert dense / less >= 30
    same_bits(small, secateur.load(tmp_path / "sparse.safetensors", into=zoo.build(name)))


KINDS = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_of_every_dtype_is_kept(tmp_path, kind):
    """Random bytes: NaN with all their payloads, infinities, negative zeros; an empty tensor, a scalar, one across strides."""

    def net(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, kind)

        def noise(*shape: int) -> torch.Tensor:
            rows = torch.randint(0, 2 if kind == "bool" else 256, (*shape, dtype.itemsize), generator=generator)
            return rows.to(torch.uint8).view(dtype).reshape(shape)

        holder = nn.Linear(8, 8)
        holder.register_buffer("long", noise(40, 50))
        holder.register_buffer("turned", noise(3, 4).t())
        holder.register_buffer("scalar", noise())
        holder.register_buffer("none", noise(0, 3))
        return holder

    model = net(0)
    plan = mask(fingerprint(model), {"weight": np.eye(8)})
    small = plan.apply(model)
    secateur.save(tmp_path / "x.safetensors", small, plan)
    same_bits(small, secateur.load(tmp_path / "x.safetensors", into=net(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_at_98_percent_is_thirty_times_smaller_and_round_trips_bit_for_bit(tmp_path, dtype):
    model = wide_net().to(dtype)
    plan = mask(fingerprint(model), random_masks(model, 0.02))
    small = plan.apply(model)
    secateur.save(tmp_path / "dense.safetensors", model)
    secateur.save(tmp_path / "sparse.safetensors", small, plan)
    dense, sparse = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("dense", "sparse"))
    assert dense / sparse > (30 if dtype == torch.float32 else 25)
    again = secateur.load(tmp_path / "sparse.safetensors", into=wide_net(192))
    same_bits(small, again)
    assert artefact.read_plan(tmp_path / "sparse.safetensors") == plan
    secateur.save(tmp_path / "twice.safetensors", again, plan)
    assert (tmp_path / "twice.safetensors").read_bytes() == (tmp_path / "sparse.safetensors").read_bytes()


def test_values_outside_the_support_are_not_lost_in_silence(tmp_path):
    model = wide_net(8)
    plan = mask(fingerprint(model), random_masks(model, 0.5))
    with pytest.raises(SecateurError, match="values other than zero"):
        secateur.save(tmp_path / "x.safetensors", model, plan)
    assert not (tmp_path / "x.safetensors").exists()


def saved(tmp_path) -> bytes:
    model = wide_net(8)
    plan = mask(fingerprint(model), random_masks(model, 0.1))
    secateur.save(tmp_path / "x.safetensors", plan.apply(model), plan)
    return (tmp_path / "x.safetensors").read_bytes()


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path):
    data, path = saved(tmp_path), tmp_path / "damaged.safetensors"
    places = np.random.default_rng(0).permutation(len(data))[:60]
    for place in [*places, len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(SecateurError, match=r"damaged|copy or download|safetensors file|no JSON|format|header"):
            secateur.load(path, into=wide_net(8))
    path.write_bytes(data[:-5])
    with pytest.raises(SecateurError):
        secateur.load(path, into=wide_net(8))


def as_format_1(model: nn.Module, plan: Plan) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file of format 1, written out here as that format was described."""
    codes: dict[str, np.ndarray] = {}
    text, masks = json.dumps(to_json(plan, codes)), masks_after(plan)
    values = {
        name: value[torch.from_numpy(masks[name])] if name in masks else value for name, value in model.state_dict().items()
    }
    metadata = {"format": "pt", "secateur": "1", "plan": text, "aliases": "{}"}
    return values | {name: torch.tensor(code) for name, code in codes.items()}, metadata


def stamped(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    head, body = container.pack(tensors, metadata, "forging")
    path.write_bytes(head + bytes(body))
    return path


def test_files_of_format_1_are_read(tmp_path):
    model = wide_net(8)
    plan = mask(fingerprint(model), random_masks(model, 0.1))
    small = plan.apply(model)
    path = stamped(tmp_path / "old.safetensors", *as_format_1(small, plan))
    assert artefact.read_plan(path) == plan
    same_bits(small, secateur.load(path, into=wide_net(8)))


class Old(nn.Module):
    """The network in files/sparse_format_1.safetensors, which secateur wrote before format 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.head.weight


def test_a_file_of_format_1_that_was_kept(tmp_path):
    path = Path(__file__).with_name("files") / "sparse_format_1.safetensors"
    model, plan = secateur.load(path, into=Old()), artefact.read_plan(path)
    masks = {"conv.weight": np.arange(36).reshape(4, 1, 3, 3) % 5 == 0, "head.weight": np.eye(4)}
    assert plan == Plan(fingerprint(Old()), (Mask(tuple(support(name, value) for name, value in masks.items())),))
    for place, (name, value) in enumerate(model.state_dict().items(), 1):
        place = 9 if name == "head.weight" else place  # the tied weight comes ninth and was written last
        count = torch.arange(value.numel()) * place % 7 - 3
        expected = (count.reshape(value.shape) / 4 * torch.tensor(masks.get(name.replace("tied", "head"), 1.0))).to(value.dtype)
        assert torch.equal(value, torch.tensor(7) if name.endswith("tracked") else expected), name
    assert model.tied.weight is model.head.weight
    assert artefact.read_metadata(path) == {"note": "format 1"}
    secateur.save(tmp_path / "new.safetensors", model, plan)
    same_bits(model, secateur.load(tmp_path / "new.safetensors", into=Old()))


CODE = "secateur.mask/1/1.weight"
FORGED = {
    "a mask that is not there": lambda t, m: t.pop(CODE),
    "a mask of floats": lambda t, m: t.update({CODE: t[CODE].float()}),
    "a mask cut short": lambda t, m: t.update({CODE: t[CODE][:-1].clone()}),
    "a mask of ones": lambda t, m: t.update({CODE: torch.full_like(t[CODE], 255)}),
    "a mask of zeros": lambda t, m: t.update({CODE: torch.zeros_like(t[CODE])}),
    "one value too many": lambda t, m: t.update({"1.weight": torch.cat([t["1.weight"], torch.ones(1)])}),
    "no values": lambda t, m: t.pop("1.weight"),
    "a whole tensor": lambda t, m: t.update({"1.weight": torch.ones(8, 8, 3, 3)}),
    "huge tensors": lambda t, m: m.update(plan=m["plan"].replace("[8, 8, 3, 3]", "[1099511627776, 8, 3, 3]")),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_file_of_format_1_is_refused_with_a_sentence(tmp_path, case):
    """The checksum is right; `FORGED` has altered the tensors."""
    model = wide_net(8)
    plan = mask(fingerprint(model), random_masks(model, 0.1))
    tensors, metadata = as_format_1(plan.apply(model), plan)
    FORGED[case](tensors, metadata)
    path = stamped(tmp_path / "forged.safetensors", tensors, metadata)
    with pytest.raises(SecateurError):
        secateur.load(path, into=wide_net(8))


def deflated(text: bytes) -> torch.Tensor:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return torch.tensor(list(stream.compress(text) + stream.flush()), dtype=torch.uint8)


def in_index(change):
    """`change` at work on the JSON of the index."""

    def forge(rows):
        index = json.loads(zlib.decompress(rows[packing.INDEX].numpy().tobytes(), -15))
        change(index)
        rows[packing.INDEX] = deflated(json.dumps(index).encode())

    return forge


def sparse_group(**parts):
    return in_index(lambda index: index["groups"][1].update(**parts))


def claimed(size: int):
    """The shape of one tensor that says more than there is."""
    return in_index(lambda index: index["groups"][0]["tensors"].update({"1.weight": [size]}))


def more(index, count: int, name: str = "1.weight") -> None:
    """`count` values more of one tensor in the table, and no more in the file."""
    index["groups"][0]["tensors"][name][0] += count


def longer(name: str):
    return lambda rows: rows.update({name: torch.cat([rows[name], torch.zeros(1, dtype=torch.uint8)])})


def grown(rows):
    """A plane that inflates to more than its tensors hold: ten million zeros in ten kilobytes."""
    bomb = deflated(bytes(10_000_000))
    index = json.loads(zlib.decompress(rows[packing.INDEX].numpy().tobytes(), -15))
    before = sum(index["groups"][0]["planes"])
    index["groups"][0]["planes"] = [len(bomb), 0, 0, 0]
    rows[packing.VALUES] = torch.cat([bomb, rows[packing.VALUES][before:]])
    rows[packing.INDEX] = deflated(json.dumps(index).encode())


PACKED = {
    "no index": ("without its index", lambda rows: rows.pop(packing.INDEX)),
    "no masks": ("without its index", lambda rows: rows.pop(packing.MASKS)),
    "a tensor beside them": ("without its index", lambda rows: rows.update(x=torch.ones(1))),
    "values of floats": ("without its index", lambda rows: rows.update({packing.VALUES: torch.ones(8)})),
    "an empty index": ("does not|another length", lambda rows: rows.update({packing.INDEX: rows[packing.INDEX][:0]})),
    "an index cut short": ("another length", lambda rows: rows.update({packing.INDEX: rows[packing.INDEX][:-3].clone()})),
    "an index of noise": ("does not unpack", lambda rows: rows.update({packing.INDEX: rows[packing.INDEX] ^ 255})),
    "bytes behind the index": ("another length", longer(packing.INDEX)),
    "bytes behind the masks": ("of masks", longer(packing.MASKS)),
    "bytes behind the values": ("of values", longer(packing.VALUES)),
    "an index that is a bomb": ("grows beyond", lambda rows: rows.update({packing.INDEX: deflated(b"[" + b" " * 10**7)})),
    "an index that is no JSON": ("no JSON", lambda rows: rows.update({packing.INDEX: deflated(b"plan: import os")})),
    "a deep index": ("nested too deep", lambda rows: rows.update({packing.INDEX: deflated(DEEP)})),
    "an index that is a list": ("list of 0", lambda rows: rows.update({packing.INDEX: deflated(b"[]")})),
    "a key twice": ("twice", lambda rows: rows.update({packing.INDEX: deflated(b'{"plan":1,"plan":1}')})),
    "no plan": ("without 'plan'", in_index(lambda index: index.pop("plan"))),
    "an unknown key": ("unknown key", in_index(lambda index: index.update(run="os.system"))),
    "a newer plan": ("newer than", in_index(lambda index: index["plan"].update(format=2))),
    "ties that are none": ("tied tensors", in_index(lambda index: index.update(aliases={"a": 3}))),
    "a tie to nothing": ("tied to", in_index(lambda index: index.update(aliases={"a": "b"}))),
    "a mask of another length": ("of masks", in_index(lambda index: index["masks"].update({CODE: 1}))),
    "a mask of less than nothing": ("for the length", in_index(lambda index: index["masks"].update({CODE: -1}))),
    "a mask that is not there": ("without its mask", in_index(lambda i: i["masks"].update(x=i["masks"].pop(CODE)))),
    "an unknown dtype": ("of dtype", sparse_group(dtype="object")),
    "another dtype": ("planes of bytes", sparse_group(dtype="float64")),
    "planes of nothing": ("planes of bytes", sparse_group(planes=[])),
    "a tensor in two groups": ("two groups", sparse_group(tensors={"0.weight": [1]})),
    "one value too many": ("does not unpack|another length", in_index(lambda index: more(index, 1))),
    "one value too few": ("does not unpack|another length|grows beyond", in_index(lambda index: more(index, -1))),
    "values of two tensors swapped": ("values of shape", in_index(lambda index: more(index, 1, "4.weight") or more(index, -1))),
    "a tensor nobody knows": ("an unknown", in_index(lambda i: i["groups"][1]["tensors"].update(x=[0]))),
    "a hundred billion values": ("has room for", claimed(10**11)),
    "a shape of text": ("for a shape", claimed("os")),
    "no values": ("does not unpack|another length", in_index(lambda index: index["groups"][0]["tensors"].pop("1.weight"))),
    "a plane that is a bomb": ("grows beyond", grown),
}
DEEP = bytes(np.random.default_rng(0).integers(97, 122, 4000, dtype=np.uint8)).join([b'{"', b'":' + b"[" * 30_000])


@pytest.mark.parametrize("case", PACKED)
def test_a_forged_file_is_refused_with_a_sentence(tmp_path, case):
    """The checksum is right; a case has altered the rows of bytes."""
    says, change = PACKED[case]
    data = saved(tmp_path)
    header, rows = container.header_of(data, "forging"), container.tensors_of(data, "forging")
    change(rows)
    path = stamped(tmp_path / "forged.safetensors", rows, {k: v for k, v in header.metadata.items() if k != "sha256"})
    with pytest.raises(SecateurError, match=says) as caught:
        secateur.load(path, into=wide_net(8))
    assert caught.value.asked.startswith("loading")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_plan_that_deflates_like_a_bomb_is_stored_plain_and_read(tmp_path):
    model = nn.Linear(4, 4)
    model.register_buffer("x" * 100_000, torch.zeros(1))
    plan = mask(fingerprint(model), {"weight": np.eye(4)})
    secateur.save(tmp_path / "x.safetensors", plan.apply(model), plan)
    assert (tmp_path / "x.safetensors").stat().st_size > 200_000
    assert artefact.read_plan(tmp_path / "x.safetensors") == plan


def test_the_bench_of_file_sizes_measures_both_files_and_its_page_says_so():
    row = module("bench/file_sizes.py").measure("digits_resnet", 0.02, None)
    assert row["exact"]
    assert row["dense_bytes"] > 4 * row["parameters"]
    assert row["maskable"] == sum(p.numel() for p in zoo.build("digits_resnet").parameters() if p.dim() > 1)
    found = {"hardware": {"cpu": "a CPU"}, "versions": {"torch": "2.13.0"}, "seed": 0, "command": "python bench/file_sizes.py"}
    rows = [row | {"dense_bytes": 300, "sparse_bytes": 10}, row | {"exact": False}]
    text = module("docs/make/file_sizes.py").page({**found, "rows": rows})
    assert "| 300 | 10 | 30.0 | yes |" in text
    assert "| NO |" in text
