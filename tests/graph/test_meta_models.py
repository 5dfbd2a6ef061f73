"""Models without memory: a large language model is traced and planned on shapes alone; tracing a real one costs little."""

import random
import resource
import time
import tracemalloc
from itertools import pairwise

import pytest
import torch
from torch import nn

from secateur import trace
from secateur.graph.execute import convolved
from secateur.testing import random_plan


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    """One layer of LLaMA: rotary attention with grouped queries, and a gated MLP."""

    def __init__(self, width, heads, kv_heads, hidden):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.one, self.two = Norm(width), Norm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, kv_heads * self.head_dim, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.scale = self.head_dim**-0.5

    def forward(self, x, cos, sin):
        b, n, _ = x.shape
        y = self.one(x)
        q, k, v = (f(y).view(b, n, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (t * cos + torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], -1) * sin for t in (q, k))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
        x = x + self.o(z.transpose(1, 2).reshape(b, n, -1))
        y = self.two(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    """The shape of LLaMA 7B with `layers` of its 32 layers."""

    def __init__(self, layers, width=4096, heads=32, kv_heads=32, hidden=11008, words=32000):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Block(width, heads, kv_heads, hidden) for _ in range(layers))
        self.norm, self.head = Norm(width), nn.Linear(width, words, bias=False)
        half = width // heads // 2
        self.register_buffer("frequency", 10000 ** -(torch.arange(half) / half), persistent=False)

    def forward(self, ids):
        x = self.embed(ids)
        angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.frequency
        angle = torch.cat([angle, angle], -1)
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin())
        return self.head(self.norm(x))


def resident_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kv_heads", [32, 8])
def test_a_large_model_is_planned_without_its_weights(kv_heads):
    with torch.device("meta"):
        model = Language(4, kv_heads=kv_heads)
    before = resident_bytes()
    start = time.perf_counter()
    axes = trace(model, torch.zeros(1, 64, dtype=torch.long))
    hidden = {a.name: range(a.units // 2) for a in axes.free if a.kind == "channel" and a.units == 11008}
    plan = axes.plan(hidden)
    small = plan.apply(model)
    assert time.perf_counter() - start < 60
    assert resident_bytes() - before < 300e6
    assert all(p.is_meta for p in small.parameters())
    assert small.layers[0].up.weight.shape == (5504, 4096)
    assert axes.count("params", dict.fromkeys(hidden, 5504)) == sum(p.numel() for p in small.parameters())
    assert axes.free_share() > 0.99
    kinds = [axis.kind for axis in axes.free if axis.name.startswith("layers.1.")]
    assert kinds.count("head") == (1 if kv_heads == 32 else 2)


@pytest.mark.slow
def test_llama_7b():
    pytest.importorskip("transformers")
    from secateur.io.vision import torchvision

    torchvision()
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig())
    assert sum(p.numel() for p in model.parameters()) > 6.7e9
    before, start = resident_bytes(), time.perf_counter()
    axes = trace(model, {"input_ids": torch.zeros(1, 64, dtype=torch.long), "use_cache": False})
    plan = random_plan(axes)
    small = plan.apply(model)
    assert time.perf_counter() - start < 300
    assert resident_bytes() - before < 1e9
    kept = {name: after for name, (_, after) in plan.widths().items()}
    assert axes.count("params", kept) == sum(p.numel() for p in small.parameters())
    assert axes.free_share() > 0.99


def test_a_trace_needs_little_memory():
    """Below 5 % of the model's own size; tensors live outside Python's heap, so both are watched."""

    def block(i, o):
        return nn.Sequential(
            nn.Conv2d(i, o // 4, 1), nn.BatchNorm2d(o // 4), nn.ReLU(), nn.Conv2d(o // 4, o // 4, 3, padding=1),
            nn.BatchNorm2d(o // 4), nn.ReLU(), nn.Conv2d(o // 4, o, 1), nn.BatchNorm2d(o),
        )  # fmt: skip

    widths = [64, 256, 512, 512, 1024, 1024, 2048, 2048, 2048, 2048, 2048, 2048]
    model = nn.Sequential(nn.Conv2d(3, 64, 7, 2), *(block(i, o) for i, o in pairwise(widths)), nn.Conv2d(2048, 10, 1))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert size > 60e6
    example = torch.zeros(1, 3, 64, 64)
    trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), example)  # what torch loads once
    resident = resident_bytes()
    tracemalloc.start()
    try:
        trace(model, example)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.05 * size
    assert resident_bytes() - resident < 0.05 * size + 4e6


@pytest.mark.parametrize("seed", range(40))
def test_the_shape_of_a_convolution_is_pytorch_s_own(seed: int) -> None:
    """Geometries drawn at random, sizes that do not fit among them: the same shape, or left to PyTorch to refuse."""
    draw = random.Random(seed)
    room, groups = draw.choice([1, 2, 3]), draw.choice([1, 2, 3])
    inputs, outputs = groups * draw.randint(1, 3), groups * draw.randint(1, 3) + draw.choice([0, 0, 1])
    x = torch.empty(2, inputs + draw.choice([0, 0, 1]), *(draw.randint(1, 9) for _ in range(room)), device="meta")
    weight = torch.empty(outputs, inputs // groups, *(draw.randint(1, 4) for _ in range(room)), device="meta")
    bias = torch.empty(outputs + draw.choice([0, 0, 0, 1]), device="meta") if draw.random() < 0.5 else None
    stride, padding, dilation = ([draw.randint(low, 3) for _ in range(draw.choice([1, room]))] for low in (1, 0, 1))
    args = (x, weight, bias, stride, padding, dilation, False, [0] * room, groups)
    mine = convolved(args)
    try:
        expected = torch.ops.aten.convolution.default(*args)
    except (RuntimeError, ValueError):
        assert mine is None
    else:
        assert mine is None or (mine.shape == expected.shape and mine.dtype == expected.dtype and mine.is_meta)
        fits = x.shape[1] == inputs and not outputs % groups and (bias is None or len(bias) == outputs)
        assert mine is not None or not fits or 0 in expected.shape
