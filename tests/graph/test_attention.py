"""The stand-in for `nn.MultiheadAttention` against PyTorch's own, and cuts of its heads against attention over the rest."""

import itertools
from copy import deepcopy

import pytest
import torch
from torch import nn

from secateur import criteria, repair, trace
from secateur.surgery import FollowingAttention, follow_heads
from secateur.testing import awake, counts_are_exact, down_to_one, file_round_trip, preview_equals_apply, random_plan

B, L, S, E, H = 2, 5, 7, 12, 3
OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"kdim": 6, "vdim": 9},
    {"kdim": 6, "vdim": 9, "batch_first": True, "bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
]


def generator():
    return torch.Generator().manual_seed(3)


def make(options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return awake(nn.MultiheadAttention(E, H, **options).eval())


def arguments(options, single=False):
    shapes = [(L, E), (S, options.get("kdim", E)), (S, options.get("vdim", E))]
    if not single:
        shapes = [(B, n, w) if options.get("batch_first") else (n, B, w) for n, w in shapes]
    return tuple(torch.randn(shape, generator=generator()) for shape in shapes)


MASKS = {
    "none": dict,
    "float": lambda: {"attn_mask": torch.randn(L, S, generator=generator())},
    "boolean": lambda: {"attn_mask": torch.rand(L, S, generator=generator()) < 0.3},
    "per head": lambda: {"attn_mask": torch.randn(B * H, L, S, generator=generator())},
    "padding": lambda: {"key_padding_mask": torch.arange(S)[None].expand(B, S) >= torch.tensor([[S], [S - 3]])},
    "float padding": lambda: {"key_padding_mask": torch.randn(B, S, generator=generator())},
    "both": lambda: {**MASKS["padding"](), "attn_mask": (torch.arange(S) > 0) & MASKS["boolean"]()["attn_mask"]},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_pytorch(options, mask):
    theirs, x = make(options), arguments(options)
    ours = follow_heads(make(options))
    assert type(ours) is FollowingAttention
    for need, average in itertools.product((True, False), (True, False)):
        call = {"need_weights": need, "average_attn_weights": average, **MASKS[mask]()}
        (a, one), (b, two) = theirs(*x, **call), ours(*x, **call)
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-6)
        assert (one is None) == (two is None)
        if one is not None:
            assert one.shape == two.shape
            assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_pytorch_without_a_batch(options):
    theirs, ours, x = make(options), follow_heads(make(options)), arguments(options, single=True)
    (a, one), (b, two) = theirs(*x), ours(*x)
    assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(one, two, atol=1e-6)


def test_one_tensor_as_query_key_and_value():
    for options in ({}, {"batch_first": True}, {"bias": False}):
        x = torch.randn(B, L, E, generator=generator())
        assert torch.allclose(make(options)(x, x, x)[0], follow_heads(make(options))(x, x, x)[0], atol=1e-6)


def test_causal():
    x = torch.randn(L, B, E, generator=generator())
    call = {"attn_mask": nn.Transformer.generate_square_subsequent_mask(L), "is_causal": True, "need_weights": False}
    assert torch.allclose(make({})(x, x, x, **call)[0], follow_heads(make({}))(x, x, x, **call)[0], atol=1e-6)


def test_gradients_are_those_of_pytorch():
    theirs, ours, x = make({}), follow_heads(make({})), arguments({})
    for module in (theirs, ours):
        module(*x)[0].square().mean().backward()
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6), name


class Wrapped(nn.Module):
    """Attention between two layers, so that all of its widths may move."""

    def __init__(self, options):
        super().__init__()
        self.options = options
        self.q, self.k, self.v = nn.Linear(4, E), nn.Linear(4, options.get("kdim", E)), nn.Linear(4, options.get("vdim", E))
        self.attention = nn.MultiheadAttention(E, H, **options)
        self.out = nn.Linear(E, 2)

    def forward(self, x):
        return self.out(self.attention(self.q(x), self.k(x), self.v(x))[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_heads_and_widths_are_cut_exactly(options):
    def build():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return awake(Wrapped(options))

    x = torch.randn(2, 5, 4, generator=generator())
    axes = trace(build(), x)
    kinds = {axis.kind for axis in axes.free}
    assert {"head", "head_dim"} <= kinds
    for seed in range(3):
        plan = random_plan(axes, seed=seed)
        for law in (preview_equals_apply, counts_are_exact, file_round_trip, down_to_one):
            law(build, x, axes, plan)


LAYERS = {
    "encoder": lambda: nn.TransformerEncoderLayer(E, H, 20, dropout=0.0, batch_first=True),
    "encoder, norm first, sequence first": lambda: nn.TransformerEncoderLayer(E, H, 20, dropout=0.0, norm_first=True),
    "decoder": lambda: nn.TransformerDecoderLayer(E, H, 20, dropout=0.0, batch_first=True),
    "decoder, norm first": lambda: nn.TransformerDecoderLayer(E, H, 20, dropout=0.0, norm_first=True, activation="gelu"),
}


class Stream(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, E), layer, nn.Linear(E, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.layer(x, x) if isinstance(self.layer, nn.TransformerDecoderLayer) else self.layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_transformers(name):
    def build():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return awake(Stream(LAYERS[name]()))

    x = torch.randn(2, 5, 4, generator=generator())
    axes = trace(build(), x)
    assert {"head", "head_dim", "width", "channel"} <= {axis.kind for axis in axes.free}
    for seed in range(2):
        plan = random_plan(axes, seed=seed)
        for law in (preview_equals_apply, counts_are_exact, file_round_trip, down_to_one):
            law(build, x, axes, plan)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_whole_transformer():
    def build():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return awake(nn.Transformer(E, H, 1, 1, 20, dropout=0.0, batch_first=True))

    x = (torch.randn(2, 5, E, generator=generator()), torch.randn(2, 4, E, generator=generator()))
    axes = trace(build(), x)
    assert {"head", "head_dim", "channel"} <= {axis.kind for axis in axes.free}
    preview_equals_apply(build, x, axes, random_plan(axes))


@pytest.mark.parametrize("layer", [False, True])
def test_values_of_torch_attention_are_selected_and_repaired(layer: bool) -> None:
    """The projection at the end of `nn.MultiheadAttention` reads the heads; PyTorch's class never calls it as a module."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 4)
            kind = nn.TransformerEncoderLayer if layer else nn.MultiheadAttention
            self.mix = kind(12, 3, 20, batch_first=True) if layer else kind(12, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(self.mix(x) if layer else x + self.mix(x, x, x, need_weights=False)[0])

    torch.manual_seed(0)
    model = Net().double().eval()
    x = torch.randn(20, 7, 5, dtype=torch.float64)
    before, path = model(x).detach(), "mix.self_attn" if layer else "mix"
    axes = trace(model, x)
    heads = next(axis for axis in axes.free if axis.kind == "head")
    reader = follow_heads(deepcopy(model)).get_submodule(path)
    held: list[torch.Tensor] = []
    reader.out_proj.register_forward_hook(lambda module, args, output: held.append(args[0].flatten(0, 1)))
    stream = model.first(x)
    reader(stream, stream, stream)
    weight = model.get_submodule(f"{path}.out_proj").weight
    parts = torch.stack(
        [(held[0][:, 4 * h : 4 * h + 4] @ weight[:, 4 * h : 4 * h + 4].T).flatten() for h in range(3)], 1
    ).detach()
    first = (parts.T @ parts.sum(1)).argmax()
    scores = criteria.lasso(model, [(x, None)])(heads)
    assert int(scores.argmax()) == int(first), "the path takes up first what correlates most"
    assert float(scores.max()) == pytest.approx(float((parts.T @ parts.sum(1)).max()) / len(held[0]))
    assert torch.equal(model(x), before)
    assert type(model.get_submodule(path)) is nn.MultiheadAttention
    plan = axes.plan({heads.name: [0, 2]})
    for method in (repair.least_squares, repair.compensation):
        small = plan.apply(model)
        lost = float((small(x) - before).detach().norm())
        method(model, small, [(x, None)], plan=plan)
        assert float((small(x) - before).detach().norm()) < 0.7 * lost
