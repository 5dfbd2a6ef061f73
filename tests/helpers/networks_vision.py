"""Small versions of what vision libraries do that a tracer can get wrong; each builder is seeded by the global seed."""

import torch
from torch import nn
from torch.nn import functional as F


class QuotientAttention(nn.Module):
    """The width of a head is calculated from the width of the stream; attention scales by the width it finds."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class ChannelAttention(nn.Module):
    """Attention between the channels of a head (XCA): the softmax runs over the width of a head."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.num_heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 4, 1).unbind(0)
        a = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        return self.proj((a @ v).permute(0, 3, 1, 2).reshape(b, n, c))


class ShiftedWindows(nn.Module):
    """Windows with a relative-position table; a shift that equals the number of heads; a scale calculated from widths."""

    def __init__(self, width=12, heads=2):
        super().__init__()
        self.shift_size = 2
        self.num_heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(49, heads))
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        between = (place[:, :, None] - place[:, None] + 3).permute(1, 2, 0)
        self.register_buffer("index", between[..., 0] * 7 + between[..., 1], persistent=False)

    def forward(self, x):
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-self.shift_size, -self.shift_size), (1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1)
        y = (q * (c // self.num_heads) ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, 16, c))
        y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + torch.roll(y, (self.shift_size, self.shift_size), (1, 2))


class CachedBias(nn.Module):
    """Attention whose bias by position is kept between calls in eval mode, as LeViT does."""

    def __init__(self, width=12, heads=3, key=4):
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim, self.scale = heads, key, 2 * key, key**-0.5
        self.qkv = nn.Linear(width, heads * 4 * key)
        self.proj = nn.Linear(heads * 2 * key, width)
        self.biases = nn.Parameter(torch.randn(heads, 5))
        self.register_buffer("places", (torch.arange(5)[:, None] - torch.arange(5)).abs(), persistent=False)
        self.cache = {}

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def bias(self):
        if self.training:
            return self.biases[:, self.places]
        if "bias" not in self.cache:
            self.cache["bias"] = self.biases[:, self.places]
        return self.cache["bias"]

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.num_heads, -1).split([self.key_dim, self.key_dim, self.val_dim], 3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        y = (q @ k * self.scale + self.bias()).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, n, self.num_heads * self.val_dim))


class Tokens(nn.Module):
    """`body` between two linear layers, on a sequence of vectors."""

    def __init__(self, *body, width=12):
        super().__init__()
        self.inward = nn.Linear(6, width)
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(self.inward(x)).mean(tuple(range(1, x.dim() - 1))))


class RmsNorm2d(nn.Module):
    """Root mean square over channels that lie in the second dim, and an activation."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.act = nn.ReLU()

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.act(x * self.weight.reshape(1, -1, 1, 1))


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al., 2023): the size of a channel over the mean size."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        size = size / (size.mean(1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), x * size)


class StandardConv(nn.Conv2d):
    """Weight standardisation by the training kernel of batch norm, as in NFNet."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels))

    def forward(self, x):
        seen = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(seen, None, None, weight=self.gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scale(nn.Module):
    """A layer scale that keeps the shape of its view: no norm, though its vectors look like one's."""

    def __init__(self, channels):
        super().__init__()
        self.shape = (channels, 1, 1)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.scale.view(self.shape)


def norms():
    """Norms over channels that PyTorch has no class for, and standardised kernels."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), RmsNorm2d(8), StandardConv(8, 6, 3, padding=1), nn.GroupNorm(1, 6), Scale(6), nn.GELU(),
        nn.Conv2d(6, 9, 1), ResponseNorm(9), StandardConv(9, 7, 1), StandardConv(7, 5, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )  # fmt: skip


class Partial(nn.Module):
    """Splits by half of an attribute, and by an attribute and what is left of another."""

    def __init__(self):
        super().__init__()
        self.width, self.dim, self.part = 8, 10, 4
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.mix = nn.Conv2d(8, 10, 1)
        self.partial = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        a, b = self.stem(x).split(self.width // 2, dim=1)
        x = F.relu(self.mix(torch.cat([self.first(a), b], 1)))
        a, b = torch.split(x, [self.part, self.dim - self.part], dim=1)
        return self.head(torch.cat([self.partial(a), b], 1).mean((2, 3)))


class Auxiliary(nn.Module):
    """A second classifier that only training sees, and tokens of two stages joined by a kernel of one entry."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.extra = nn.Sequential(nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 3))
        self.body = nn.Conv2d(6, 6, 3)
        self.join = nn.Conv1d(2, 1, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        y = torch.stack([x.mean((2, 3)), self.body(x).mean((2, 3))], 1)
        out = self.head(self.join(y).squeeze(1))
        return (out, self.extra(x)) if self.training else out


def image(*shape):
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


VISION = {
    "quotient attention": (lambda: Tokens(nn.LayerNorm(12), QuotientAttention(), nn.LayerNorm(12)), image(2, 5, 6)),
    "channel attention": (lambda: Tokens(QuotientAttention(), ChannelAttention()), image(2, 5, 6)),
    "shifted windows": (lambda: Tokens(ShiftedWindows()), image(2, 8, 8, 6)),
    "cached bias": (lambda: Tokens(CachedBias()), image(2, 5, 6)),
    "norms of other libraries": (norms, image(2, 3, 6, 6)),
    "partial": (Partial, image(2, 3, 6, 6)),
    "auxiliary head": (Auxiliary, image(2, 3, 8, 8)),
}
