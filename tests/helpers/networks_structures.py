"""Structures that whole architectures are made of, one small network each: `STRUCTURES` joins the zoo of `networks`."""

import torch
from torch import nn
from torch.nn import functional as F


class TwoSided(nn.Module):
    """A bilinear form of two streams."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 7)
        self.both = nn.Bilinear(5, 7, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.both(self.left(x).relu(), self.right(x)).tanh())


class SpaceToDepth(nn.Module):
    """Space becomes channels and channels space, by PyTorch's modules and by views."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.down = nn.Sequential(nn.PixelUnshuffle(2), nn.BatchNorm2d(20), nn.Conv2d(20, 6, 1))
        self.up = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 1), nn.PixelShuffle(2))
        self.mix = nn.Conv2d(2 * 4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.up(self.down(self.stem(x).relu()))
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return self.head(self.mix(x).relu().amax((2, 3)))


class Einsum(nn.Module):
    """Attention whose weights are parameters of three dims and whose products are all written as einsum."""

    def __init__(self, width=10, heads=3, head_dim=4):
        super().__init__()
        self.inward = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(heads, width, head_dim) / 3) for _ in range(3))
        self.o = nn.Parameter(torch.randn(heads, head_dim, width) / 3)
        self.scale = head_dim**-0.5
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.inward(x)
        y = self.norm(x)
        q, k, v = (torch.einsum("bnd,hde->bhne", y, weight) for weight in (self.q, self.k, self.v))
        a = (torch.einsum("bhne,bhme->bhnm", q, k) * self.scale).softmax(-1)
        return self.head(x + torch.einsum("bhne,hed->bnd", a @ v, self.o))


class Transposed(nn.Module):
    """Transposed convolutions of one, two and three dims, one of them in groups and one depthwise."""

    def __init__(self):
        super().__init__()
        self.one = nn.ConvTranspose1d(4, 6, 2)
        self.fold = nn.Conv1d(6, 8, 3, groups=2)
        self.two = nn.ConvTranspose2d(8, 12, (1, 2), groups=4)
        self.deep = nn.ConvTranspose2d(12, 12, 2, groups=12, bias=False)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.three = nn.ConvTranspose3d(12, 5, 2)
        self.last = nn.Conv3d(5, 4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.fold(self.one(x).relu())
        x = self.norm(self.deep(self.two(x[:, :, None]).relu()))
        return self.head(self.last(F.elu(self.three(x[:, :, None]))).relu().amax((2, 3, 4)))


class Buffers(nn.Module):
    """Buffers with a channel dim: a shift and a scale, a running range, one that is not saved, one that is looked up."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.register_buffer("shift", torch.randn(6))
        self.register_buffer("spread", torch.rand(1, 6, 1, 1) + 0.5)
        self.register_buffer("ceiling", torch.rand(6) + 1, persistent=False)
        self.register_buffer("waves", torch.randn(20, 8))
        self.mid = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = (self.stem(x) - self.shift[:, None, None]) / self.spread
        x = torch.minimum(x, self.ceiling.view(1, -1, 1, 1))
        x = self.mid(x).flatten(2).transpose(1, 2)
        return self.head((x + self.waves[: x.shape[1]]).relu().amax(1))


class Direct(nn.Module):
    """Weights that no layer owns: a kernel, a matrix on either side of a product, a gate, a token and a norm's vectors."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3) / 3)
        self.bias = nn.Parameter(torch.randn(6))
        self.right = nn.Parameter(torch.randn(6, 8) / 3)
        self.left = nn.Parameter(torch.randn(5, 8) / 3)
        self.gate = nn.Parameter(torch.rand(5))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.scale, self.shift = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = F.conv2d(x, self.kernel, self.bias, padding=1).relu()
        x = x.flatten(2).transpose(1, 2) @ self.right
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = F.layer_norm(x, x.shape[-1:], self.scale, self.shift)
        x = (self.left @ x.transpose(1, 2)).transpose(1, 2) * self.gate
        return self.head(x.relu()[:, 0])


class Cells(nn.Module):
    """Recurrent cells stepped by hand, and layers of one direction on top of each other."""

    def __init__(self):
        super().__init__()
        self.inward = nn.Linear(5, 6)
        self.gru, self.lstm = nn.GRU(6, 5, batch_first=True), nn.LSTM(5, 4, 2, batch_first=True)
        self.cell, self.long = nn.GRUCell(4, 6), nn.LSTMCell(6, 7)
        self.plain = nn.RNN(7, 5, batch_first=True, nonlinearity="relu")
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.lstm(self.gru(self.inward(x).tanh())[0])[0]
        h, state, out = None, None, []
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
            state = self.long(h, state)
            out.append(state[0])
        return self.head(self.plain(torch.stack(out, 1))[0][:, -1])


class Rearranged(nn.Module):
    """narrow, unflatten, movedim, tensor_split, roll, flip, repeat_interleave, unfold and an index."""

    def __init__(self):
        super().__init__()
        self.width, self.first = 4, 5
        self.inward = nn.Linear(6, 12)
        self.parts = nn.ModuleList(nn.Linear(4, 5) for _ in range(3))
        self.shared = nn.Linear(4, 6)
        self.mid = nn.Linear(15, 8)
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(3, 3)])
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        x = self.inward(x).relu().roll(1, 1).flip(1)
        cut = [part(piece) for part, piece in zip(self.parts, x.tensor_split(3, -1), strict=True)]
        y = self.mid(torch.cat(cut, -1)).relu()
        first, second = y.narrow(-1, 0, self.first), y[..., self.first :]
        per = self.shared(x.unflatten(-1, (3, self.width))).movedim(2, 1).repeat_interleave(2, 1)
        z = self.heads[0](first) * self.heads[1](second) + self.last(per[:, [0, 3, 5]].relu().amax(1))
        return z.unfold(1, 2, 1).amax(-1).mean(1)


class Rotary(nn.Module):
    """Rotary attention: halves of a head turn by angles held in a buffer; queries share keys by repetition."""

    def __init__(self, width=12, heads=4, kv_heads=2, head_dim=6):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale = head_dim**-0.5
        self.inward = nn.Linear(6, width)
        self.norm = nn.RMSNorm(width)
        self.q, self.kv = nn.Linear(width, heads * head_dim), nn.Linear(width, 2 * kv_heads * head_dim)
        self.o = nn.Linear(heads * head_dim, width)
        angle = torch.arange(8)[:, None] * 10 ** -(torch.arange(head_dim // 2) / 3)
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin(), persistent=False)
        self.head = nn.Linear(width, 3)

    def turn(self, x):
        one, two = x.chunk(2, -1)
        n = x.shape[-2]
        return x * self.cos[:n] + torch.cat([-two, one], -1) * self.sin[:n]

    def forward(self, x):
        x = self.inward(x)
        b, n, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(y).view(b, n, 2, self.kv_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (self.turn(k), v))
        z = F.scaled_dot_product_attention(self.turn(q), k, v, scale=self.scale)
        return self.head(x + self.o(z.transpose(1, 2).flatten(2)))


class Told(nn.Module):
    """Norms that are told their sizes by an attribute of the module, with and without weights."""

    def __init__(self, width=10):
        super().__init__()
        self.sizes, self.groups = (width,), 3
        self.inward, self.mid = nn.Linear(6, width), nn.Linear(width, 12)
        self.scale, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        self.gain = nn.Parameter(torch.rand(12))
        self.bare = nn.LayerNorm(8, elementwise_affine=False)
        self.last, self.head = nn.Linear(12, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        x = F.layer_norm(self.inward(x), self.sizes, self.scale, self.shift).relu()
        x = F.group_norm(self.mid(x).transpose(1, 2), self.groups, self.gain).transpose(1, 2)
        return self.head(self.bare(self.last(x)))


class Scattered(nn.Module):
    """Entries written by position: scatter, an index that is assigned to, a select that is."""

    def __init__(self):
        super().__init__()
        self.inward, self.mid, self.head = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)
        self.token = nn.Parameter(torch.randn(8))
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

    def forward(self, x):
        x = self.inward(x).relu()
        x = torch.zeros_like(x).scatter(1, self.order[None, :, None].expand_as(x), x)
        y = self.mid(x)
        y[:, 1] = self.token
        y[:, self.order[:2]] = 0.0
        return self.head(y.tanh())


class Resampled(nn.Module):
    """Channels that pass while positions are sampled, transformed, turned and written."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)
        self.register_buffer("grid", torch.rand(1, 4, 4, 2) * 2 - 1)

    def forward(self, x):
        x = self.stem(x)
        x = F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)
        x = torch.fft.irfft2(torch.fft.rfft2(x) * 0.5).rot90(1, (2, 3))
        x = self.mid(F.grid_sample(x, self.grid.expand(len(x), -1, -1, -1), align_corners=False)).relu()
        x = torch.slice_scatter(x, 2 * x[:, :, :2], 2, 1, 3)
        x = x.index_add(3, torch.tensor([0, 0, 3, 1]), x).flatten(2).transpose(1, 2)
        x = torch.take_along_dim(x, torch.tensor([5, 1, 7])[None, :, None], 1)
        return self.head(torch.logaddexp(x, x.diagonal(dim1=0, dim2=1).transpose(0, 1)[:, None]))


def image(*shape):
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(3))


STRUCTURES = {
    "bilinear": (TwoSided, image(3, 6)),
    "space to depth": (SpaceToDepth, image(2, 3, 8, 8)),
    "einsum": (Einsum, image(2, 5, 6)),
    "transposed convolutions": (Transposed, image(2, 4, 5)),
    "buffers": (Buffers, image(2, 3, 6, 6)),
    "parameters used directly": (Direct, image(2, 3, 5, 5)),
    "recurrent cells": (Cells, image(2, 4, 5)),
    "rearranged": (Rearranged, image(2, 4, 6)),
    "rotary": (Rotary, image(2, 5, 6)),
    "told norms": (Told, image(2, 5, 6)),
    "resampled": (Resampled, image(2, 3, 6, 6)),
    "scattered": (Scattered, image(2, 4, 6)),
}
"""Name to (constructor, example)."""
