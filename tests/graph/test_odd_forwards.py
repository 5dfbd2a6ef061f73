"""Forwards that mix units, or do something else at another width: what a trace leaves free computes what the mask computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.core.plan import Plan
from secateur.graph import trace
from secateur.testing import awake, distance, random_plan


class Between(nn.Module):
    """Convolution, an operation on its 12 channels (or `channels`), convolution."""

    def __init__(self, op, channels=12, after=None, **modules):
        super().__init__()
        self.op = op
        self.a, self.b = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(after or channels, 10, 1)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.b(self.op(self, self.a(x)))


def quarter(self, x):
    k = x.shape[1] // 4
    return torch.cat([x[:, :k].relu(), x[:, k:]], 1)


def skip(self, x):
    y = self.other(x)
    return y + x if y.shape == x.shape else y


def parts(self, x):
    return torch.cat([part * (i + 1) for i, part in enumerate(torch.tensor_split(x, self.parts, 1))], 1)


class Parts(Between):
    def __init__(self, parts_):
        super().__init__(parts)
        self.parts = parts_


NETWORKS = {
    "running sum": lambda: Between(lambda self, x: x.cumsum(1)),
    "loss": lambda: Between(lambda self, x: x * F.mse_loss(x, torch.zeros_like(x))),
    "norm over a plane": lambda: Between(lambda self, x: self.norm(x), norm=nn.LayerNorm([12, 8, 8])),
    "grouped transposed": lambda: Between(lambda self, x: self.up(x), after=8, up=nn.ConvTranspose2d(12, 8, 2, 2, groups=4)),
    "a quarter of it": lambda: Between(quarter),
    "a threshold": lambda: Between(lambda self, x: x * 2 if x.shape[1] > 8 else x),
    "a low threshold": lambda: Between(lambda self, x: x * 2 if x.shape[1] > 3 else x),
    "an odd number": lambda: Between(lambda self, x: x * 2 if x.shape[1] % 2 else x),
    "equal sizes": lambda: Between(skip, 16, 12, other=nn.Conv2d(16, 12, 3, padding=1)),
    "uneven parts": lambda: Parts(5),
    "even parts": lambda: Parts(4),
    "borders": lambda: Parts((3, 7)),
}


def build(name):
    torch.manual_seed(0)
    return awake(NETWORKS[name]().double().eval())


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_equals_cut(name):
    model, x = build(name), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    axes = trace(model, x)
    for seed in range(4):
        plan = random_plan(axes, seed=seed)
        assert distance(plan.preview(model).eval(), plan.apply(model), x) < 1e-12
    for axis in axes.free:
        for left in (1, axis.units // 2, axis.units - 1):
            plan = axes.plan({axis.name: range(max(left, 1))})
            assert distance(plan.preview(model).eval(), plan.apply(model), x) < 1e-12, (axis.name, left)


@pytest.mark.parametrize(("name", "free"), [("norm over a plane", "a"), ("grouped transposed", "a"), ("even parts", "a")])
def test_what_follows_stays_free(name, free):
    assert free in {axis.name for axis in trace(build(name), torch.zeros(2, 3, 8, 8, dtype=torch.float64)).free}


def test_the_reason_names_the_line():
    axes = trace(build("equal sizes"), torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    assert not {"a", "other"} & {axis.name for axis in axes.free}
    assert "decides by its size" in axes["other"].fixed
    assert "test_odd_forwards.py" in axes["other"].fixed


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_that_keeps_what_it_calculated():
    """The older weight norm holds a weight with a gradient after a forward, which `copy.deepcopy` refuses."""
    layer = nn.utils.weight_norm(nn.Conv2d(12, 12, 3, padding=1))
    model = Between(lambda self, x: self.norm(x), norm=layer)
    x = torch.randn(2, 3, 8, 8)
    model(x)
    axes = trace(model, x)
    plan = random_plan(axes, seed=0)
    assert distance(plan.preview(model).eval(), plan.apply(model), x) < 1e-5
    assert distance(model, Plan(axes.fingerprint).apply(model), x) == 0


class Packed(nn.Module):
    """Sequences of unlike lengths: packed, read by a recurrent layer, padded again."""

    def __init__(self, kind, *, first=True, ordered=False, layers=1, both=False):
        super().__init__()
        self.first, self.ordered = first, ordered
        self.embed = nn.Embedding(11, 6)
        self.read = kind(6, 5, num_layers=layers, batch_first=first, bidirectional=both)
        self.last = nn.Sequential(nn.Linear(5 * (1 + both), 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.embed(words if self.first else words.T)
        x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=self.first, enforce_sorted=self.ordered)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.read(x)[0], batch_first=self.first)
        return self.last(x.sum(1 if self.first else 0))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}), (nn.LSTM, {"both": True, "layers": 2}), (nn.GRU, {"first": False}), (nn.GRU, {"both": True}),
        (nn.RNN, {"ordered": True}),
    ],
)  # fmt: skip
def test_packed_sequences_are_cut(kind, options) -> None:  # type: ignore[no-untyped-def]
    def build() -> nn.Module:
        torch.manual_seed(0)
        return awake(Packed(kind, **options))

    words = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(0))
    example = (words, torch.tensor([7, 5, 3, 2]))
    axes = trace(build(), example)
    assert {axis.units for axis in axes.free} >= {5, 6, 7}, "hidden units, width of the embedding, units of the head"
    for seed in range(3):
        plan = random_plan(axes, seed=seed, least=0.3)
        model = build().double().eval()
        small = plan.apply(model)
        assert distance(plan.preview(model).eval(), small, example) < 1e-12
        widths = {name: after for name, (_, after) in plan.widths().items()}
        assert axes.count("params", widths) == sum(p.numel() for p in small.parameters())
        assert trace(small, example).free
