"""Files of sparse models: thirty times smaller at 98 % zeros, every bit kept, and refused where damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from masked import random_masks, same_bits, saved, wide_net
from scripts import module
from secateur import SecateurError
from secateur.core.plan import mask
from secateur.io import artefact
from secateur.recipes import zoo
from secateur.surgery import fingerprint
from secateur.train import sparse


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
