"""What RPG and its family take, which weights they act on, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from loops import train
from secateur import SecateurError
from secateur.testing import distance
from secateur.train.sparse import (
    Growth,
    Layout,
    Ramp,
    Rank,
    Sparse,
    acdc,
    gmp,
    granet,
    one_shot,
    rank_of,
    rigl,
    rpg,
    st3,
    weights_of,
)
from secateur.train.sparse import hook as module
from sparse_cases import SGD, batches, net


def test_every_reading_takes_the_schedule_it_is_given():
    for reading in ("released", "abstract", "st3", "acdc"):
        ramp = rpg(net(), 0.05, 1000, reading=reading, every=50, end=0.7).ramp
        assert (ramp.every, ramp.end) == (50, 0.7)
    assert rpg(net(), 0.05, 1000, reading="st3").ramp == st3(net(), 0.05, 1000).ramp
    assert rpg(net(), 0.05, 1000, reading="acdc").ramp == acdc(net(), 0.05, 1000).ramp
    assert rpg(net(), 0.05, 1000).ramp == Ramp(0.05, 1000, "exponential")
    assert rpg(net(), 0.05, 1000, shape="cubic").ramp == granet(net(), 0.05, 1000).ramp == Ramp(0.05, 1000, "cubic")
    assert rpg(net(), 0.05, 1000, reading="st3", shape="linear", freeze=0.8).ramp.shape == "linear"
    assert rpg(net(), 0.05, 1000, end=0.5, freeze=0.8).ramp.freeze == 0.8


def test_growth_is_taken_by_all_that_grow():
    gentle = Growth(drop=0.02, skip_step=False)
    for make in (rpg, granet, rigl):
        assert make(net(), 0.1, 1000, growth=gentle).growth == gentle
        assert make(net(), 0.1, 1000).growth == Growth()
    assert rpg(net(), 0.1, 1000, reading="abstract", growth=gentle).growth == gentle
    assert granet(net(), 0.1, 1000, end=0.5, freeze=0.6).ramp == Ramp(0.1, 1000, "cubic", end=0.5, freeze=0.6)
    assert rigl(net(), 0.1, 1000, freeze=0.6).ramp == Ramp(0.1, 1000, "constant", freeze=0.6)


def test_a_ramp_that_never_freezes_weights_or_never_moves_them_is_told_apart():
    with pytest.raises(SecateurError, match="freeze"):
        granet(net(), 0.1, 1000, freeze=0.0)


WRONG = {
    "growth on st3": ({"reading": "st3", "growth": Growth()}, "growth, for which it has no use"),
    "growth on acdc": ({"reading": "acdc", "growth": Growth()}, "growth, for which it has no use"),
    "a ramp of acdc": ({"reading": "acdc", "shape": "cubic"}, "shape, for which it has no use"),
    "a freeze of acdc": ({"reading": "acdc", "freeze": 0.5}, "freeze, for which it has no use"),
    "steps of acdc": ({"reading": "acdc", "every": 0}, "every=0"),
    "a term of growth": ({"reading": "abstract", "rank": Rank(1.0)}, 'give acts="step"'),
    "a shape": ({"shape": "cubical"}, "did you mean 'cubic'"),
    "a reading beside a term": ({"reading": "st33", "rank": Rank(1.0)}, "did you mean 'st3'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_reading_has_no_use_for_is_refused(case):
    given, words = WRONG[case]
    with pytest.raises(SecateurError, match=words):
        rpg(net(), 0.1, 1000, **given)


def test_a_term_of_growth_without_growth_is_refused():
    with pytest.raises(SecateurError, match="no growth"):
        gmp(net(), 0.1, 1000, rank=Rank(1.0))
    assert rpg(net(), 0.1, 1000, reading="abstract", rank=Rank(0.0))._term is None, "lambda = 0 acts nowhere"
    assert rpg(net(), 0.1, 1000, reading="st3", rank=Rank(0.0))._term is None


# which weights -----------------------------------------------------------------------------------------------------


class Vision(nn.Module):
    """A vision transformer of one block: one convolution cuts patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).mT).mean(1))


@pytest.mark.parametrize("reading", ["released", "abstract", "st3", "acdc"])
def test_in_a_transformer_the_rank_term_acts_on_linear_layers_too(reading):
    torch.manual_seed(0)
    model = Vision()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    hook = rpg(model, 0.2, 30, reading=reading, every=3 if reading != "st3" else 1, optimizer=optimizer)
    assert [weight.name for weight in hook._term.weights] == [weight.name for weight in hook.weights]
    train(model, hook, batches(30, dtype=torch.float32), optimizer)
    assert hook.density == pytest.approx(0.2, abs=2e-3)
    only = rpg(Vision(), 0.2, 30, every=3, rank=replace(rank_of(model, 0.2), linear=False))
    assert [weight.name for weight in only._term.weights] == ["patches.weight"], "as the code would have it"
    assert not rank_of(net(), 0.2, reading=reading).linear, "most weights of a convolutional network are in convolutions"


class Language(nn.Module):
    """A language model in the way of GPT-2: linear layers that are Conv1D, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        utilities = pytest.importorskip("transformers.pytorch_utils")
        self.words = nn.Embedding(20, 8)
        self.up, self.down = utilities.Conv1D(32, 8), utilities.Conv1D(8, 32)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        return self.head(x + self.down(functional.gelu(self.up(x))))


def test_gpt2s_linear_layers_become_sparse_and_its_tied_head_stays_dense():
    torch.manual_seed(0)
    model = Language()
    assert [weight.name for weight in weights_of(model)] == ["up.weight", "down.weight"]
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = rpg(model, 0.1, 20, every=2, optimizer=optimizer)
    assert [weight.name for weight in hook._term.weights] == ["up.weight", "down.weight"]
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        words = torch.randint(0, 20, (4, 8), generator=draw)
        functional.cross_entropy(model(words).flatten(0, 1), words.flatten()).backward()
        hook.after_backward()
        optimizer.step()
        hook.after_step()
        optimizer.zero_grad()
    assert hook.density == pytest.approx(0.1, abs=2e-3)
    assert bool((model.head.weight != 0).all())
    assert distance(hook.plan().apply(model), model, torch.arange(8)[None]) == 0
    kept = {support.tensor: support.mask().shape for step in hook.plan().steps for support in step.supports}
    assert kept == {"up.weight": (8, 32), "down.weight": (32, 8)}


class Turned(nn.Module):
    """A linear layer and a Conv1D that hold the same numbers."""

    def __init__(self, turned: bool):
        super().__init__()
        utilities = pytest.importorskip("transformers.pytorch_utils")
        torch.manual_seed(0)
        value, end = torch.randn(8, 192) / 14, torch.randn(4, 8) / 3
        self.first = utilities.Conv1D(8, 192) if turned else nn.Linear(192, 8)
        self.head = utilities.Conv1D(4, 8) if turned else nn.Linear(8, 4)
        with torch.no_grad():
            for layer, weight in ((self.first, value), (self.head, end)):
                layer.weight.copy_(weight.T if turned else weight)
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.first(x.flatten(1))))


LAYOUTS = {
    "rpg": lambda m, o: rpg(m, 0.1, 30, every=3, optimizer=o),
    "st3": lambda m, o: st3(m, 0.1, 30, optimizer=o),
    "1:4": lambda m, o: gmp(m, 0.25, 30, every=3, layout=Layout(pattern="1:4"), optimizer=o),
    "blocks": lambda m, o: rpg(m, 0.25, 30, every=3, layout=Layout(pattern="2x1"), optimizer=o),
    "occupancy": lambda m, o: gmp(m, 0.15, 30, every=3, layout=Layout(occupancy=1), optimizer=o),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_conv1d_is_trained_as_the_linear_layer_it_is(name):
    """Rows and columns the right way round: the same masks, turned, and the same weights."""
    models, hooks = (Turned(False).double(), Turned(True).double()), []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        hooks.append(LAYOUTS[name](model, optimizer))
        train(model, hooks[-1], batches(30), optimizer)
    for plain, turned in zip(*(hook.weights for hook in hooks), strict=True):
        assert torch.equal(hooks[0].masks[plain.name], hooks[1].masks[turned.name].T)
        assert (plain.tensor - turned.tensor.T).abs().max() < 1e-9
        assert hooks[1].masks[turned.name].shape == turned.tensor.shape


@pytest.mark.parametrize("layout", [Layout(pattern="1:4"), Layout(pattern="2x1"), Layout(occupancy=1)])
def test_a_conv1d_is_pruned_at_once_as_the_linear_layer_it_is(layout):
    plans = [one_shot(Turned(turned), 0.25, layout=layout) for turned in (False, True)]
    plain, turned = (
        {s.tensor: torch.from_numpy(s.mask()) for step in plan.steps for s in step.supports} for plan in plans
    )  # fmt: skip
    assert "first.weight" in plain
    assert set(plain) == set(turned)
    assert all(torch.equal(plain[name], turned[name].T) for name in plain)


def test_what_is_tied_to_a_dense_weight_stays_dense():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(6, 4)
            self.middle, self.twin, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6)
            self.head.weight, self.twin.weight = self.words.weight, self.middle.weight

    model = Tied()
    assert [weight.name for weight in weights_of(model)] == ["middle.weight"]
    with pytest.raises(SecateurError, match="no weight that may"):
        weights_of(model, ["twin"])
    assert [w.name for w in weights_of(Turned(True), fits=lambda w: w.shape[1] == 192)] == ["first.weight"]


# where it trains ---------------------------------------------------------------------------------------------------


def test_weights_follow_the_masks_of_rank_0_where_processes_break_ties_apart(monkeypatch):
    """Two processes whose weights differ by a rounding: weights that rank 0 keeps are not set to zero by the other's masks."""
    told = []
    monkeypatch.setattr(module, "agree", lambda masks: told.append(dict(masks)) or dict(masks))
    first, other = nn.Linear(12, 4, bias=False), nn.Linear(12, 4, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.ones(4, 12) + torch.linspace(0, 1e-6, 48).view(4, 12))
        other.weight.copy_(torch.ones(4, 12) + torch.linspace(1e-6, 0, 48).view(4, 12))
    gradient = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))

    def change(layer: nn.Linear) -> Sparse:
        hook = Sparse(layer, Ramp(0.25, 100, "exponential", 1, end=0.02), growth=Growth())
        for _ in range(3):
            layer.weight.grad = gradient.clone()
            hook.after_backward()
            hook.step += 1
        return hook

    one = change(first)
    answers = iter(told)
    monkeypatch.setattr(module, "agree", lambda _: next(answers))
    two = change(other)
    assert torch.equal(one.masks["weight"], two.masks["weight"])
    assert torch.equal(first.weight != 0, other.weight != 0)


@pytest.mark.parametrize("reading", ["released", "abstract"])
def test_a_gradient_scaler_that_unscales_before_the_hook_changes_nothing(reading):
    models = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        hook = rpg(model, 0.1, 30, reading=reading, every=3, optimizer=optimizer)
        for x, y in batches(30):
            loss = functional.cross_entropy(model(x), y)
            if scaler is None:
                loss.backward()
            else:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
            hook.after_backward()
            optimizer.step() if scaler is None else scaler.step(optimizer)
            scaler.update() if scaler is not None else None
            hook.after_step()
            optimizer.zero_grad()
        models.append(model)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-12)


def test_pruned_weights_of_st3_keep_their_momentum():
    model = net(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = rpg(model, 0.1, 20, reading="st3", optimizer=optimizer)
    train(model, hook, batches(15, dtype=torch.float32), optimizer)
    outside = [optimizer.state[weight.tensor]["momentum_buffer"][~hook.masks[weight.name]] for weight in hook.weights]
    assert all(part.any() for part in outside if len(part))
