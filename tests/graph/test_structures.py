"""What single structures promise beyond the laws that `test_laws` holds over all of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import ZOO, builder
from networks_structures import STRUCTURES, Rotary
from networks_vision import VISION, StandardConv
from secateur import SecateurError, criteria, score, trace
from secateur.allocate import uniform
from secateur.measure import facts
from secateur.testing import awake, distance, down_to_one, random_plan

ATTENTION = ("vision transformer", "grouped query attention", "einsum", "rotary")
ASKED = [(name, kind) for name in ATTENTION for kind in ("head", "head_dim")]
ASKED.remove(("grouped query attention", "head_dim"))  # its forward calculates a scale from it


@pytest.mark.parametrize(("name", "asked"), ASKED)
def test_whole_heads_or_dims_within_heads_as_asked(name, asked):
    make, example = {**ZOO, **STRUCTURES}[name]
    model, x = awake(make()).eval(), example()
    other = {"head": "head_dim", "head_dim": "head"}[asked]
    axes = trace(model, x, ignore=[f"*:{other}", f"*:{other}#*"])
    assert asked in {axis.kind for axis in axes.free}
    assert other not in {axis.kind for axis in axes.free}
    plan = uniform(axes, score(axes, criteria.l2(model)), keep=0.5)
    cut = {axis.kind: plan.widths()[axis.name] for axis in axes.free if axis.name in plan.widths()}
    before, after = cut[asked]
    assert after < before
    assert distance(plan.preview(model).eval(), plan.apply(model), x) < 1e-5


class Written(nn.Module):
    """A norm whose size is a number in the code."""

    def __init__(self, norm):
        super().__init__()
        self.inward, self.head, self.norm = nn.Linear(6, 8), nn.Linear(8, 3), norm
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x):
        return self.head(self.norm(self.inward(x), self.scale))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, w: F.layer_norm(x, (8,), w),
        lambda x, w: F.rms_norm(x, (8,), w),
        lambda x, w: F.group_norm(x, 4, w),
        lambda x, w: F.rms_norm(x, (8,)) * w,
    ],
)
def test_a_norm_that_is_told_a_number_keeps_it(norm):
    model, x = Written(norm).eval().double(), torch.randn(4, 6).double()
    axes = trace(model, x)
    for axis in axes:
        assert axis.fixed or axis.name.startswith("inward") or axis.units == 2
    down_to_one(lambda: model, x, axes, axes.plan({}))
    plan = random_plan(axes)
    assert distance(plan.preview(model).eval(), plan.apply(model), x) < 1e-5


def test_a_standardised_kernel_of_one_entry_keeps_two_inputs():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), StandardConv(6, 5, 1), nn.ReLU(), StandardConv(5, 4, 3))
    axes = trace(model.eval(), torch.zeros(1, 3, 8, 8))
    assert {axis.name: axis.fewest for axis in axes.free} == {"0": 2, "2": 1}
    with pytest.raises(SecateurError, match="keep 2 or more"):
        axes.plan({"0": [3]})
    plan = uniform(axes, score(axes, criteria.l2(model)), keep=0.01)
    assert plan.widths() == {"0": (6, 2), "2": (5, 1)}


class Remade(nn.Module):
    """A buffer that the state dict leaves out takes the shape of the input, as ConViT's does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("places", torch.zeros(1), persistent=False)

    def forward(self, x):
        if len(self.places) != x.shape[1]:
            self.places = torch.arange(x.shape[1], dtype=x.dtype)
        return self.b(self.a(x).relu() + self.places[:, None])


def test_a_buffer_that_forwards_make_anew_may_differ():
    model, x = Remade(), torch.randn(2, 5, 4)
    plan = random_plan(trace(model, x))
    model(x)
    small = plan.apply(model)
    assert distance(plan.preview(model), small, x) < 1e-6
    other = Remade()
    other.register_buffer("more", torch.zeros(3))
    with pytest.raises(SecateurError, match="more"):
        plan.apply(other)


@pytest.mark.parametrize("inner", [1, 3])
def test_products_of_an_einsum_count_at_every_width(inner):
    """PyTorch multiplies entry by entry where all it sums over has one entry; the counter sees no product there."""

    class Product(nn.Module):
        def forward(self, a, b):
            return torch.einsum("bi,io->bo", a, b)

    assert facts(Product(), torch.randn(2, inner), torch.randn(inner, 5)).macs == 2 * inner * 5


@pytest.mark.parametrize("name", [*VISION, *STRUCTURES])
def test_a_second_trace_finds_no_more(name):
    make, example = {**VISION, **STRUCTURES}[name]
    model = builder(make)()
    axes = trace(model, example())
    small = random_plan(axes, least=0.5).apply(model)
    assert {axis.name for axis in trace(small, example()).free} <= {axis.name for axis in axes.free}


def test_rotary_halves_go_together():
    axes = trace(Rotary(), torch.zeros(2, 5, 6))
    width = next(axis for axis in axes.free if axis.kind == "head_dim")
    starts = {(slot.tensor, slot.start) for slot in width.slots if slot.tensor in ("cos", "sin")}
    assert width.units == 3
    assert starts == {("cos", 0), ("cos", 3), ("sin", 0), ("sin", 3)}
