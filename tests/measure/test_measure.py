"""Counts, ranks, memory and time against hand arithmetic and numpy."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import handmade
from secateur import measure, trace
from secateur.core.errors import SecateurError
from secateur.measure import machine
from secateur.measure.count import meta_copy

X = torch.zeros(1, 3, 4, 4, dtype=torch.float64)


def test_counts_of_a_convolutional_network() -> None:
    model = handmade.small().train()
    model.norm.eval()
    facts = measure.facts(model, X)
    assert facts.params == handmade.params(8, 6)
    assert facts.macs == handmade.macs(8, 6)
    buffers = 2 * (8 + 6) * 8 + 2 * 8  # running statistics in double precision, two counters of batches
    assert facts.bytes == handmade.params(8, 6) * 8 + buffers
    assert (facts.latency_ms, facts.peak_memory, facts.accuracy) == (None, None, None)
    assert (model.training, model.norm.training) == (True, False), "modes come back one by one"


def test_macs_are_counted_without_computing() -> None:
    model, seen = handmade.small(), []
    model.head.register_forward_hook(lambda _, inputs, output: seen.append(output.device.type))
    measure.facts(model, X)
    assert seen == ["meta"]


def test_macs_grow_with_the_batch_and_need_an_example() -> None:
    model = handmade.small()
    assert measure.facts(model, X.expand(7, 3, 4, 4)).macs == 7 * handmade.macs(8, 6)
    assert measure.facts(model).macs is None


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_counted_in_full(training: bool) -> None:
    """The fused kernels of the CPU would hide two of the products."""
    width, hidden, tokens, images = 32, 64, 10, 3
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True).train(training)
    projections = images * tokens * (width * 3 * width + width * width + 2 * width * hidden)
    products = 2 * images * tokens * tokens * width
    torch.backends.mha.set_fastpath_enabled(True)
    assert measure.facts(layer, torch.zeros(images, tokens, width)).macs == projections + products
    assert measure.facts(Reader(layer), torch.zeros(images, tokens, width)).macs == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


class Reader(nn.Module):
    """A forward that reads a value, which no meta tensor has, and meets a tensor that is no buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.shift = inner, torch.ones(1)

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        """`inner` of x, unless x is very large."""
        return self.inner(x + self.shift) if float(x.sum()) < 1e9 else x


def test_grouped_and_transposed_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=4, bias=False), nn.ConvTranspose2d(16, 4, 2, stride=2))
    facts = measure.facts(model, torch.zeros(2, 8, 6, 6))
    assert facts.macs == 2 * (4 * 4 * 16 * 2 * 9 + 4 * 4 * 16 * 4 * 4)


class Vectors(nn.Module):
    """Products with vectors, which PyTorch's counter leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.v = nn.Linear(6, 8), nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.addmv(self.b.sum(1), self.b, y.t() @ (y @ self.v)) + torch.dot(self.v, y[0])


def test_products_with_vectors() -> None:
    x = torch.zeros(4, 6)
    macs = 4 * 6 * 8 + 4 * 8 + 8 * 4 + 5 * 8 + 8
    model = Vectors()
    assert measure.facts(model, x).macs == macs
    assert trace(model, x).count("macs", {}) == macs
    model.b.data[:2] = 0
    assert measure.facts(model, x).sparse_macs == macs - 2 * 8


def test_a_projected_recurrent_layer_counts_although_it_stays_whole() -> None:
    model, x = nn.LSTM(6, 8, 2, proj_size=4, batch_first=True), torch.zeros(2, 5, 6)
    assert trace(model, x).count("macs", {}) == measure.facts(model, x).macs > 0


def test_tied_tensors_count_once() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    facts = measure.facts(model, torch.zeros(2, 3, dtype=torch.long))
    assert (facts.params, facts.bytes, facts.macs) == (28, 28 * 4, 2 * 3 * 28)


def test_several_and_named_arguments() -> None:
    bilinear = nn.Bilinear(3, 4, 5)
    assert measure.facts(bilinear, torch.zeros(2, 3), torch.zeros(2, 4)).params == 65
    assert measure.facts(Reader(nn.Linear(3, 2)), {"x": torch.zeros(2, 3), "twice": True}).macs == 12


def test_a_meta_copy_holds_no_values_and_the_same_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Reader(nn.BatchNorm1d(4)))
    model[1].weight = model[0].weight
    copy = meta_copy(model)
    assert {t.device.type for t in [*copy.parameters(), *copy.buffers(), copy[2].shift]} == {"meta"}
    assert copy[1].weight is copy[0].weight
    assert copy[0].weight.stride() == model[0].weight.stride()
    assert model[0].weight.device.type == "cpu"
    assert model[2].shift.device.type == "cpu"


def test_rank_facts_against_numpy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(9, 5))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].weight[:, 1] = 0
        model[0].weight[4] = model[0].weight[3] * 2
        model[1].weight.zero_()
    found = measure.rank_facts(model)
    weight = model[0].weight.detach().flatten(1).double().numpy()
    assert found["0.weight"].rank == np.linalg.matrix_rank(weight, tol=1e-5) == 4
    values = np.linalg.svd(weight, compute_uv=False) ** 2
    assert found["0.weight"].energy_rank == next(k for k in range(7) if values[k:].sum() <= 0.2 * values.sum())
    assert (found["0.weight"].empty_rows, found["0.weight"].empty_columns, found["0.weight"].full) == (1, 1, 6)
    assert (found["1.weight"].rank, found["1.weight"].energy_rank, found["1.weight"].empty_rows) == (0, 0, 5)
    assert list(measure.rank_facts(model, names=["1.weight"])) == ["1.weight"]


MEASURES = {
    "facts": measure.facts,
    "memory": measure.peak_memory,
    "latency": measure.latency,
    "compare": lambda model, x: measure.compare({"a": model}, x),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_wrong_example_is_one_sentence(name: str) -> None:
    model = handmade.small().train()
    with pytest.raises(SecateurError, match=r"a forward of Small on the example: found RuntimeError: .*give an example"):
        MEASURES[name](model, torch.zeros(1, 5, 4, 4, dtype=torch.float64))
    assert model.training


@pytest.mark.parametrize("name", MEASURES)
def test_measuring_changes_nothing(name: str) -> None:
    model = handmade.small().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    MEASURES[name](model, X)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Residual(nn.Module):
    """Holds its input until the end."""

    def forward(self, x: Tensor) -> Tensor:
        """x plus its rectified double."""
        return x + (x * 2).relu()


def test_peak_memory_by_hand() -> None:
    x = torch.zeros(25)  # 100 bytes
    assert measure.peak_memory(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()), x) == 300, (
        "the input is the caller's, so it stays"
    )
    assert measure.peak_memory(nn.Sequential(nn.ReLU(inplace=True)), x) == 100
    assert measure.peak_memory(nn.Sequential(nn.Unflatten(0, (5, 5)), nn.Flatten(0)), x) == 100, "views own nothing"
    assert measure.peak_memory(Residual(), x) == 300, "x, the product (gone after relu), relu, then the sum"
    wide = nn.Sequential(nn.Linear(25, 50, bias=False), nn.ReLU(), nn.Linear(50, 1, bias=False))
    assert measure.peak_memory(wide, x) == 500, "in the middle"
    assert measure.peak_memory(nn.Linear(25, 50, bias=False), x) == 300, "the weight is not counted"


def test_peak_memory_sees_inside_attention_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 512, batch_first=True).eval()
    assert measure.peak_memory(layer, torch.zeros(3, 10, 8)) >= 3 * 10 * 512 * 4, "the hidden units of the feed-forward"


def test_peak_memory_grows_with_width_and_batch() -> None:
    narrow, wide = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 4)) for n in (10, 100))
    assert measure.peak_memory(wide, torch.zeros(1, 4)) > measure.peak_memory(narrow, torch.zeros(1, 4))
    assert measure.peak_memory(wide, torch.zeros(6, 4)) == 6 * measure.peak_memory(wide, torch.zeros(1, 4))


class Sleeper(nn.Module):
    """Takes so many milliseconds, and says in a shared log that it ran."""

    def __init__(self, milliseconds: float, log: list[float]) -> None:
        super().__init__()
        self.milliseconds, self.log = milliseconds, log

    def forward(self, x: Tensor) -> Tensor:
        """x, later."""
        assert not self.training
        assert not torch.is_grad_enabled()
        self.log.append(self.milliseconds)
        time.sleep(self.milliseconds / 1000)
        return x


def test_models_are_timed_in_turns() -> None:
    log: list[float] = []
    models = {"fast": Sleeper(1, log), "slow": Sleeper(4, log)}
    times = measure.compare(models, torch.zeros(1), repeats=4, warmup=2)
    assert log == [1, 1, 4, 4, 1, 4, 4, 1, 1, 4, 4, 1]
    assert list(times) == ["fast", "slow"]
    assert 1 <= times["fast"] < times["slow"]


def test_threads_hold_for_the_call_only() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    assert measure.latency(model, torch.zeros(1, 2), repeats=2, warmup=1, threads=1) > 0
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(SecateurError, match="repeats=0"):
        measure.latency(nn.ReLU(), X, repeats=0)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/env/bin/secateur", "show", "a b"], "secateur show 'a b'"),
        (["/opt/src/secateur/__main__.py", "demo"], "secateur demo"),
        (["bench/trace.py", "--all", ""], "python bench/trace.py --all"),
        (["/elsewhere/bench/trace.py"], "python trace.py"),
        ([""], "python -"),
    ],
)
def test_a_command_names_no_folder_of_the_machine(argv, expected, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("sys.argv", argv)
    assert machine.command() == expected
