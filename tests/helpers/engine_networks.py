"""Small sparse networks of every shape for the engine, and how their outputs are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from secateur.cli.main import application
from secateur.native import library

MISSING = library.missing()


@contextmanager
def forced(isa: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The instruction set `isa`, forced as a user would force it; afterwards the best of this CPU again."""
    monkeypatch.setenv("SECATEUR_ENGINE_ISA", isa)
    assert library.path() == isa
    yield isa
    monkeypatch.delenv("SECATEUR_ENGINE_ISA")
    library.library()


needs_kernels = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the engine is there")


def thin(model: nn.Module, zeros: float = 0.9, seed: int = 0) -> nn.Module:
    """`model` in evaluation, its weights thinned, its batch norms with statistics that matter.

    The largest weight of a layer stays, and all that stay grow to the variance of He et al., 2015: what comes out is made of
    what goes in, and not of biases alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight.data
            kept = (torch.rand(weight.shape, generator=generator) >= zeros) | (weight.abs() == weight.abs().max())
            weight *= kept * (6 / (1 - zeros)) ** 0.5
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr,operator]
    return model.eval()


class Bottleneck(nn.Module):
    """Two convolutions around a strided one, with a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 12, 1)
        self.na, self.nb, self.nc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(12)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.na(self.a(x)))
        y = F.relu(self.nb(self.b(y)), inplace=True)
        y = self.nc(self.c(y))
        y += self.shortcut(x)
        return F.relu_(y)


class Squeeze(nn.Module):
    """An inverted bottleneck with squeeze and excitation, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.deep, self.down = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 5, 1, 2, groups=24), nn.Conv2d(24, 8, 1)
        self.first, self.second = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.norm = nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.up(x)))
        y = F.silu(self.deep(y))
        scale = F.hardsigmoid(self.second(F.relu(self.first(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.down(scale * y)


class Dense(nn.Module):
    """Concatenations with batch norms behind them, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12), nn.BatchNorm2d(16)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            parts.append(conv(F.relu(norm(torch.cat(parts, 1)))))
        return F.avg_pool2d(F.relu(self.norms[2](torch.cat(parts, 1))), 2)


class OptionA(nn.Module):
    """A shortcut of every second pixel and zeros for new channels, as in the first CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


class Attention(nn.Module):
    """A transformer's block: sparse linears between operations only PyTorch knows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 96), nn.Linear(96, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(x)))


class Positions(nn.Module):
    """Positions and a mask are made in the forward, from nothing; what is added to them comes from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(32, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        x = x + self.embedding(places)
        return self.linear(x) * (places[None, :] <= places[:, None]).float().sum(1)[:, None]


class Several(nn.Module):
    """Two inputs, and a dict of outputs one of which is an intermediate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        z = F.relu(self.conv(x)) + F.relu(self.conv(y))
        return {"map": z, "scores": (self.head(z.mean((2, 3))), x)}


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Bottleneck(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(), nn.Linear(12, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "plain": (plain, ((2, 3, 33, 40),)),
    "bottleneck": (Bottleneck, ((1, 8, 15, 15),)),
    "squeeze": (Squeeze, ((1, 8, 14, 14),)),
    "squeeze, batch of 16": (Squeeze, ((16, 8, 6, 6),)),
    "dense": (Dense, ((3, 8, 10, 12),)),
    "option A": (OptionA, ((4, 8, 8, 8),)),
    "attention": (Attention, ((2, 17, 24),)),
    "positions": (Positions, ((2, 17, 24),)),
    "pooled to one": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5)),
        ((3, 3, 2, 2),),
    ),
    "several": (Several, ((1, 3, 9, 9), (1, 3, 9, 9))),
    "valid and dilated": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 4, 3, 1, 1, 2, groups=2), nn.Flatten()),
        ((2, 3, 12, 9),),
    ),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(4, 2, 1)), ((1, 3, 8, 8),)),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, shapes = NETWORKS[name]
    torch.manual_seed(0)
    return thin(make()), tuple(torch.randn(shape) for shape in shapes)


def flat_of(value: Any) -> list[Tensor]:
    """The tensors in tuples, lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    return [value] if isinstance(value, Tensor) else [leaf for item in value for leaf in flat_of(item)]


def same(found: Any, wanted: Any) -> None:
    """Equal structure, values within 1e-4 of the largest."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for key in wanted:
            same(found[key], wanted[key])
    elif isinstance(wanted, (tuple, list)):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            same(a, b)
    else:
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) <= 1e-4 * max(float(wanted.abs().max()), 1e-3)


def spoiled(data: bytes, change: Any) -> bytes:
    """The file with `change` made to its graph, and a checksum that fits again."""
    from secateur.io.container import header_of, pack, tensors_of

    header = header_of(data, "a test")
    table = json.loads(header.metadata["engine"])
    change(table)
    metadata = {key: value for key, value in header.metadata.items() if key != "sha256"} | {"engine": json.dumps(table)}
    head, body = pack(tensors_of(data, "a test"), metadata, "a test")
    return head + bytes(body)


MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model[0].weight.data *= torch.rand_like(model[0].weight) > 0.9
    return model
"""


def told(*words: str) -> Any:
    """What a command says as JSON."""
    found = CliRunner().invoke(application(), [*words, "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.output)
