"""A seeded generator of small networks: a chain of blocks on feature maps, then one on vectors or tokens."""

import random
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

NORMS: list[Callable[[int], nn.Module]] = [
    lambda n: nn.BatchNorm2d(n),
    lambda n: nn.Identity(),
    lambda n: nn.GroupNorm(2 if n % 2 == 0 else 1, n),
]
BODIES: dict[str, Callable[..., nn.Module | nn.Parameter]] = {
    "conv": lambda c, w, norm, rng: nn.Sequential(nn.Conv2d(c, w, 3, padding=1, bias=rng.random() < 0.5), norm(w)),
    "residual": lambda c, w, norm, rng: nn.Sequential(nn.Conv2d(c, w, 3, padding=1), norm(w), nn.ReLU(), nn.Conv2d(w, c, 1)),
    "dense": lambda c, w, norm, rng: nn.Sequential(norm(c), nn.Conv2d(c, w, 3, padding=1)),
    "branches": lambda c, w, norm, rng: nn.ModuleList(nn.Conv2d(c, w + i, 1) for i in range(3)),
    "depthwise": lambda c, w, norm, rng: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.BatchNorm2d(c)),
    "grouped": lambda c, w, norm, rng: nn.Sequential(nn.Conv2d(c, w, 1), nn.Conv2d(w, 2 * w, 3, padding=1, groups=2)),
    "excite": lambda c, w, norm, rng: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 3, 1), nn.ReLU(), nn.Conv2d(3, c, 1), nn.Sigmoid()
    ),
    "halves": lambda c, w, norm, rng: nn.Conv2d(c, 2 * w, 1),
    "uneven": lambda c, w, norm, rng: nn.Conv2d(c, w + 3, 1),
    "shuffle": lambda c, w, norm, rng: nn.Conv2d(c, 2 * w, 1),
    "pixels": lambda c, w, norm, rng: nn.Conv2d(c, 4 * w, 1),
    "unshuffle": lambda c, w, norm, rng: nn.Conv2d(4 * c, w, 1),
    "transposed": lambda c, w, norm, rng: nn.ConvTranspose2d(
        c, 2 * w, 3, padding=1, groups=2 if c % 2 == 0 and rng.random() < 0.5 else 1
    ),
    "direct": lambda c, w, norm, rng: nn.Parameter(torch.randn(w, c, 1, 1) / c**0.5),
    "einsum": lambda c, w, norm, rng: nn.Parameter(torch.randn(c, w) / c**0.5),
    "bilinear": lambda c, w, norm, rng: nn.Conv2d(c, w, 3, padding=1),
    "layer norm": lambda c, w, norm, rng: nn.Linear(c, w),
}
"""By kind, the main layer or parameter of a block of c channels and width w; what a seed draws hangs on the order of kinds."""
OUT: dict[str, Callable[[int, int], int]] = {
    "residual": lambda c, w: c,
    "dense": lambda c, w: c + w,
    "branches": lambda c, w: 3 * w + 3,
    "depthwise": lambda c, w: c,
    "grouped": lambda c, w: 2 * w,
    "excite": lambda c, w: c,
    "shuffle": lambda c, w: 2 * w,
    "transposed": lambda c, w: 2 * w,
}
"""The channels that a block leaves, where they are not w."""


class Block(nn.Module):
    """One step on (B, C, H, W); `out` is the number of channels it leaves."""

    def __init__(self, kind, channels, rng):
        super().__init__()
        self.kind = kind
        c = channels
        w = rng.choice([4, 6, 8, 12])
        self.out = OUT[kind](c, w) if kind in OUT else w
        norm = rng.choice(NORMS)
        self.act = rng.choice([nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.PReLU(), nn.Hardswish()])
        if kind == "layer norm":
            self.norm = nn.LayerNorm(c)
        self.body = BODIES[kind](c, w, norm, rng)
        if kind == "uneven":
            self.sizes = [w, 3]
            self.tail = nn.Conv2d(3, w, 1)
        elif kind == "direct":
            self.register_buffer("shift", torch.randn(w, 1, 1))
        elif kind == "bilinear":
            self.gate = nn.Bilinear(c, c, w, bias=rng.random() < 0.5)
        elif kind == "layer norm":
            self.scale = nn.Parameter(torch.rand(w))

    def forward(self, x):
        kind, body = self.kind, self.body
        if kind == "residual":
            return self.act(x + body(x))
        if kind == "dense":
            return torch.cat([x, self.act(body(x))], 1)
        if kind == "branches":
            return torch.cat([self.act(b(x)) for b in body], 1)
        if kind == "excite":
            return x * body(x)
        if kind == "halves":
            a, b = body(x).chunk(2, 1)
            return a * b.sigmoid()
        if kind == "uneven":
            a, b = body(x).split(self.sizes, 1)
            return self.act(a) + self.tail(b)
        if kind == "shuffle":
            y = body(x)
            b, c, h, w = y.shape
            return self.act(y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))
        if kind == "pixels":
            return F.max_pool2d(F.pixel_shuffle(body(x), 2), 2)
        if kind == "unshuffle":
            return self.act(F.interpolate(body(F.pixel_unshuffle(x, 2)), scale_factor=2))
        if kind == "direct":
            return self.act(F.conv2d(x, body) - self.shift)
        if kind == "einsum":
            return self.act(torch.einsum("bchw,co->bohw", x, body))
        if kind == "bilinear":
            pooled = x.mean((2, 3))
            return self.act(body(x) * self.gate(pooled, pooled.tanh())[:, :, None, None])
        if kind == "layer norm":
            return self.act(self.scale * body(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.act(body(x))


class Tokens(nn.Module):
    """Self-attention written out, with heads from an attribute, on (B, N, C)."""

    def __init__(self, channels, rng):
        super().__init__()
        self.heads, self.width = rng.choice([1, 2, 3]), rng.choice([2, 4])
        inner = self.heads * self.width
        self.norm = nn.LayerNorm(channels)
        self.packed = rng.random() < 0.5
        self.qkv = nn.Linear(channels, 3 * inner)
        self.out = nn.Linear(inner, channels)
        self.scale = self.width**-0.5

    def forward(self, x):
        b, n, _ = x.shape
        y = self.qkv(self.norm(x))
        if self.packed:
            q, k, v = y.view(b, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (t.reshape(b, n, self.heads, self.width).transpose(1, 2) for t in y.chunk(3, -1))
        z = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return x + self.out(z.transpose(1, 2).reshape(b, n, -1))


class Turned(nn.Module):
    """Rotary attention with fewer key-value heads than queries, its products written as einsum or fused, on (B, N, C)."""

    def __init__(self, channels, rng):
        super().__init__()
        self.kv_heads, self.repeats, self.width = rng.choice([1, 2]), rng.choice([1, 2, 3]), rng.choice([2, 4, 6])
        self.heads = self.kv_heads * self.repeats
        self.fused, self.scale = rng.random() < 0.5, self.width**-0.5
        self.norm = nn.RMSNorm(channels)
        self.q = nn.Linear(channels, self.heads * self.width, bias=False)
        self.k, self.v = (nn.Linear(channels, self.kv_heads * self.width) for _ in range(2))
        self.out = nn.Linear(self.heads * self.width, channels)
        angle = torch.arange(36)[:, None] * torch.rand(self.width // 2)
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos())
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin(), persistent=False)

    def turn(self, x):
        one, two = x.chunk(2, -1)
        return x * self.cos[: x.shape[-2]] + torch.cat([-two, one], -1) * self.sin[: x.shape[-2]]

    def forward(self, x):
        b, n, _ = x.shape
        y = self.norm(x)
        q, k, v = (layer(y).view(b, n, -1, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.turn(q), self.turn(k)
        k, v = (t.repeat_interleave(self.repeats, 1) for t in (k, v))
        if self.fused:
            z = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            z = torch.einsum("bhnm,bhmd->bhnd", (torch.einsum("bhnd,bhmd->bhnm", q, k) * self.scale).softmax(-1), v)
        return x + self.out(z.transpose(1, 2).flatten(2))


class Network(nn.Module):
    def __init__(self, rng):
        super().__init__()
        blocks, c = [], 3
        for kind in ["conv", *rng.choices(list(BODIES), k=rng.randint(1, 4))]:
            blocks.append(Block(kind, c, rng))
            c = blocks[-1].out
        self.blocks = nn.ModuleList(blocks)
        self.ending = rng.choice(["mean", "flatten", "tokens", "multihead", "turned", "recurrent"])
        if self.ending == "tokens":
            self.tokens = Tokens(c, rng)
        elif self.ending == "turned":
            self.tokens = Turned(c, rng)
        elif self.ending == "recurrent":
            kind, hidden, both = rng.choice([nn.GRU, nn.LSTM, nn.RNN]), rng.choice([3, 5]), rng.random() < 0.5
            self.tokens = kind(c, hidden, rng.choice([1, 2]), batch_first=True, bidirectional=both)
            c = hidden * (2 if both else 1)
        elif self.ending == "multihead":
            self.inward = nn.Linear(c, 8)
            self.tokens = nn.MultiheadAttention(8, 2, batch_first=rng.random() < 0.5, bias=rng.random() < 0.5)
            c = 8
        width = c * 4 if self.ending == "flatten" else c
        self.hidden = nn.Linear(width, rng.choice([5, 8]))
        self.head = nn.Linear(self.hidden.out_features, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        if self.ending == "flatten":
            x = F.adaptive_max_pool2d(x, 2).flatten(1)
        elif self.ending == "mean":
            x = x.mean((2, 3))
        else:
            x = x.flatten(2).transpose(1, 2)
            if self.ending == "multihead":
                x = self.inward(x)
                x = x + self.tokens(x, x, x, need_weights=False)[0]
            elif self.ending == "recurrent":
                x = self.tokens(x[:, ::6])[0]
            else:
                x = self.tokens(x)
            x = x.mean(1)
        return self.head(self.hidden(x).relu())


def random_network(seed):
    """A builder and an example."""
    example = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(seed))
    return (lambda: Network(random.Random(seed))), example
