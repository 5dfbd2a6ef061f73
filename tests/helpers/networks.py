"""Small networks with every structure that a rule has to get right; each builder is seeded by the global seed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.testing import awake


class Residual(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.a = nn.Conv2d(channels, 6, 3, padding=1, bias=False)
        self.abn = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, channels, 1)
        self.head = nn.Linear(channels, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.b(F.gelu(self.abn(self.a(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(5 + 4 * i), nn.ReLU(), nn.Conv2d(5 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.head = nn.Linear(17 * 4, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Depthwise(nn.Module):
    """Inverted residual with squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Hardswish())
        self.widen = nn.Sequential(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.SiLU())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1), nn.Sigmoid())
        self.narrow = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.multiply = nn.Conv2d(6, 12, 3, groups=6)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.deep(self.widen(x))
        x = x + self.narrow(y * self.squeeze(y))
        return self.head(self.multiply(x).amax((2, 3)))


class Grouped(nn.Module):
    """Grouped convolution, channel shuffle, group norm, transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.g = nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(2, 8)
        self.shuffle = nn.ChannelShuffle(2)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.down = nn.Conv2d(6, 4, 3, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.shuffle(F.relu(self.norm(self.g(self.a(x)))))
        return self.head(self.down(self.up(x).relu()).mean((-1, -2)))


class PaddedShortcut(nn.Module):
    """Option-A shortcut: zeros beside the channels, their number in an attribute."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 8, 3, 2, 1)
        self.bn = nn.BatchNorm2d(8)
        self.grow = 2
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow, self.grow))
        return self.head(F.relu(self.bn(self.conv(x)) + short).mean((2, 3)))


class Attention(nn.Module):
    """Packed QKV, reshaped by attributes, as vision libraries write it."""

    def __init__(self, width=12, heads=3, head_dim=4):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, head_dim, head_dim**-0.5
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x):
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        a = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return x + self.proj((a @ v).transpose(1, 2).reshape(b, n, -1))


class Vision(nn.Module):
    """Patch embedding, class token, packed attention, gated MLP."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.place = nn.Parameter(torch.randn(1, 5, 12))
        self.attention = Attention()
        self.norm = nn.LayerNorm(12)
        self.gate, self.up, self.down = nn.Linear(12, 10), nn.Linear(12, 10), nn.Linear(10, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = self.attention(x)
        y = self.norm(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x[:, 0])


def encoder():
    """PyTorch's own transformer encoder on a sequence of vectors."""
    layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(6, 12), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(12, 4))


class GroupedQuery(nn.Module):
    """Fewer key-value heads than query heads, explicit scale, separate projections, RMS norm without a class of its own."""

    def __init__(self):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = 4, 2, 4
        self.embed = nn.Embedding(11, 10)
        self.norm = nn.RMSNorm(10)
        self.q, self.k, self.v = nn.Linear(10, 16, False), nn.Linear(10, 8, False), nn.Linear(10, 8, False)
        self.o = nn.Linear(16, 10, False)
        self.head = nn.Linear(10, 11, bias=False)

    def forward(self, ids: Tensor):
        x = self.embed(ids)
        y = self.norm(x)
        b, n, _ = y.shape
        q = self.q(y).view(b, n, -1, self.head_dim).transpose(1, 2)
        k = self.k(y).view(b, n, -1, self.head_dim).transpose(1, 2)
        v = self.v(y).view(b, n, -1, self.head_dim).transpose(1, 2)
        k, v = (t[:, :, None].expand(-1, -1, q.shape[1] // t.shape[1], -1, -1).flatten(1, 2) for t in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.head_dim**-0.5)
        return self.head(x + self.o(z.transpose(1, 2).reshape(b, n, -1)))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.inward = nn.Linear(5, 7)
        self.rnn = kind(7, 6, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.rnn(self.inward(x).relu())[0][:, -1])


class Split(nn.Module):
    """chunk, split, glu, stack and strided slices."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.b = nn.Linear(6, 12)
        self.c = nn.Linear(8, 8)
        self.d = nn.Linear(6, 5)
        self.head = nn.Linear(13, 3)

    def forward(self, x):
        one, two = self.a(x).chunk(2, -1)
        gated = F.glu(self.b(x), -1)
        y = self.c(one * two.sigmoid())
        return self.head(torch.cat([y, self.d(gated).relu()], -1))


class Tied(nn.Module):
    """Embedding and output share a tensor; a parameter is used directly."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.scale = nn.Parameter(torch.rand(6))
        self.mid = nn.Sequential(nn.Linear(6, 10), nn.PReLU(10), nn.Linear(10, 6))
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.scale * self.mid(x.flatten(0, 1)).view_as(x))


class Sequence1d(nn.Module):
    """1-D and 3-D convolution, flatten of channels with positions, instance norm."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.InstanceNorm1d(6, affine=True)
        self.three = nn.Conv3d(6, 5, (1, 1, 2))
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x):
        x = F.elu(self.norm(self.one(x)))
        return self.head(self.three(x[:, :, None, None]).flatten(1))


class HardCoded(nn.Module):
    """The forward writes a width that no attribute holds."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        y = self.a(x).relu().view(-1, 2, 4).flatten(1)
        return self.head(self.b(y).relu())


class TiedPair(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def plain():
    """Convolutions, pooling, flatten, linear."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 3, padding=1),
        nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(40, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4),
    )  # fmt: skip


def image(*shape):
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


def words(*shape):
    return lambda: torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(1))


ZOO = {
    "plain": (plain, image(2, 3, 8, 8)),
    "residual": (Residual, image(2, 3, 8, 8)),
    "dense": (Dense, image(2, 3, 8, 8)),
    "depthwise, squeeze-excite": (Depthwise, image(2, 3, 10, 10)),
    "grouped": (Grouped, image(2, 3, 8, 8)),
    "padded shortcut": (PaddedShortcut, image(2, 3, 8, 8)),
    "vision transformer": (Vision, image(2, 3, 8, 8)),
    "transformer encoder": (encoder, image(2, 5, 6)),
    "grouped query attention": (GroupedQuery, words(2, 5)),
    "lstm": (lambda: Recurrent(nn.LSTM), image(2, 4, 5)),
    "gru": (lambda: Recurrent(nn.GRU), image(2, 4, 5)),
    "split and glu": (Split, image(3, 6)),
    "tied": (Tied, words(2, 5)),
    "1-D and 3-D": (Sequence1d, image(2, 4, 5)),
    "hard-coded": (HardCoded, image(3, 6)),
}
VARIED = ("residual", "depthwise, squeeze-excite", "grouped", "transformer encoder")
"""Networks of the zoo that are unlike each other, for what would take too long on all."""


def builder(make, dtype=torch.float32):
    """A function that builds `make()` with the same random weights each time, none of them idle."""

    def build():
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return awake(make()).to(dtype)

    return build
