"""Block-diagonal layers: the laws, planted blocks, workers that add up, files that lie."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from networks import ZOO
from secateur import allocate, load, measure, read_plan, save, trace
from secateur.allocate.partition import balanced, shares
from secateur.core.axes import Axes
from secateur.core.codec import dumps, from_json, loads, to_json
from secateur.core.errors import SecateurError
from secateur.core.factor import Product
from secateur.core.plan import Plan, factor, split
from secateur.core.split import Blocks, blocks_of
from secateur.io import write_plan
from secateur.surgery import BlockDiagonal, fingerprint, shapes_after
from secateur.surgery.workers import expanded, worker
from secateur.testing import distance


class Net(nn.Module):
    """Convolutions of all kinds and a head of three linear layers; a width of 1 is given so that every channel counts."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 12, 1, bias=False)
        self.three = nn.Conv2d(12, 8, 3, padding=1, stride=2, padding_mode="reflect")
        self.four = nn.Linear(8 * 4, 12)
        self.five = nn.Linear(12, 8)
        self.six = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.one(x)).relu()
        x = self.three(self.two(x).relu()).relu()
        x = self.four(x.flatten(1)).relu()
        return self.six(self.five(x).tanh())


X = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().double().eval()


def mixed(model: nn.Module) -> Plan:
    """Blocks with channels in no order."""
    layers = []
    draw = np.random.default_rng(0)
    for name in ("two", "three", "four", "five"):
        out, into = model.get_submodule(name).weight.shape[:2]
        layers.append(blocks_of(name, draw.permutation(np.arange(into) % 4), draw.permutation(np.arange(out) % 4), 4))
    return split(fingerprint(model), layers)


def masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Weights between workers set to zero one by one."""
    model = deepcopy(model)
    with torch.no_grad():
        for blocks in plan.steps[0].layers:
            weight = model.get_submodule(blocks.module).weight
            for o, i in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
                if not any(o in outputs and i in inputs for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True)):
                    weight[o, i] = 0
    return model


def test_blocks_preview_and_zeros_agree() -> None:
    model = network()
    plan = mixed(model)
    before = deepcopy(model.state_dict())
    small = plan.apply(model)
    torch.testing.assert_close(small(X), masked(model, plan)(X))
    torch.testing.assert_close(plan.preview(model)(X), small(X))
    torch.testing.assert_close(expanded(small)(X), small(X))
    assert fingerprint(small) == shapes_after(plan)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}
    dense, cut = measure.facts(model, X), measure.facts(small, X)
    saved = sum(model.get_submodule(b.module).weight.numel() * 3 // 4 for b in plan.steps[0].layers)
    assert dense.params - cut.params == saved
    macs = {"two": 16, "three": 4, "four": 1, "five": 1}  # positions of the output
    saved = sum(3 * macs[b.module] * model.get_submodule(b.module).weight.numel() * 3 // 4 for b in plan.steps[0].layers)
    assert dense.macs - cut.macs == saved


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (2, 6)),
        (nn.Linear(6, 4, bias=False), (2, 3, 6)),
        (nn.Conv1d(6, 4, 3, stride=2, dilation=2, padding=1), (2, 6, 9)),
        (nn.Conv2d(6, 4, 3, padding="same"), (2, 6, 5, 5)),
        (nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="circular"), (6, 5, 5)),
    ],
)
def test_every_kind_of_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer.double())
    for reads, writes in (((0, 0, 0, 1, 1, 1), (0, 0, 1, 1)), ((1, 0, 1, 0, 0, 1), (0, 1, 1, 0))):
        plan = split(fingerprint(model), [blocks_of("0", reads, writes, 2)])
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(plan.apply(model)(x), masked(model, plan)(x))
        torch.testing.assert_close(expanded(plan.apply(model))(x), masked(model, plan)(x))


def test_files_and_text_round_trip(tmp_path: Path) -> None:
    model = network()
    plan = mixed(model)
    assert loads(dumps(plan)) == plan
    assert not plan.diff(loads(dumps(plan)))
    small = plan.apply(model)
    save(tmp_path / "small.safetensors", small, plan)
    again = load(tmp_path / "small.safetensors", into=network(1))
    assert torch.equal(again(X), small(X))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    assert "4 blocks of 3 x 2" in str(plan)
    other = split(plan.fingerprint, plan.steps[0].layers[:1])
    assert plan.diff(other)


def test_steps_compose() -> None:
    model = network()
    layers = mixed(model).steps[0].layers
    first = split(fingerprint(model), layers[:2])
    second = split(shapes_after(first), layers[2:])
    whole = first.then(second)
    assert whole.steps == mixed(model).steps
    torch.testing.assert_close(whole.apply(model)(X), second.apply(first.apply(model))(X))
    axes = trace(model, X)
    cut = axes.plan({"one": range(4)})
    middle = cut.apply(model)
    both = cut.then(split(fingerprint(middle), [blocks_of("four", np.arange(32) % 2, np.arange(12) % 2, 2)]))
    assert len(both.steps) == 2
    torch.testing.assert_close(both.apply(model)(X), both.preview(model)(X))
    assert loads(dumps(both)) == both


def test_momentum_follows_the_weights() -> None:
    model = network().train()
    plan = mixed(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(X).square().sum().backward()
    optimizer.step()
    momentum = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    plan.apply_(model, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    blocks = next(b for b in plan.steps[0].layers if b.module == "four")
    found = optimizer.state[model.four.weight]["momentum_buffer"]
    start = 0
    for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True):
        expected = momentum["four.weight"][list(outputs)][:, list(inputs)]
        torch.testing.assert_close(found[start : start + len(outputs)], expected)
        start += len(outputs)
    optimizer.zero_grad()
    model(X).square().sum().backward()
    optimizer.step()


def test_layers_that_cannot_are_refused_before_anything_changes() -> None:
    model = network()
    fine = blocks_of("five", np.arange(12) % 2, np.arange(8) % 2, 2)
    model.six.weight = nn.Parameter(torch.randn(5, 8).double())
    tied = network()
    tied.also = nn.Linear(12, 8).double()
    tied.also.weight = tied.five.weight
    with pytest.raises(SecateurError, match=r"shared with 'also\.weight'"):
        split(fingerprint(tied), [fine]).apply(tied)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(SecateurError, match="4 outputs and 4 inputs"):
        split(fingerprint(grouped), [blocks_of("0", (0, 0, 1, 1), (0, 0, 1, 1), 2)]).apply(grouped)
    plan = split(fingerprint(model), [fine])
    with pytest.raises(SecateurError, match="a plan applied to this model"):
        plan.apply(plan.apply(model))
    again = plan.apply(model)
    with pytest.raises(SecateurError, match="beside its weight"):
        split(fingerprint(again), [blocks_of("five", np.arange(6) % 2, np.arange(8) % 2, 2)]).apply(again)
    for inputs, outputs, words in (
        (((0, 1),), ((0, 1),), "two at least"),
        (((0, 1), (2,)), ((0,), (1,)), "unequal"),
        (((0,), (0,)), ((0,), (1,)), "every channel once"),
        (((1,), (0,)), ((0,),), "the same workers"),
        (((1, 0), (2, 3)), ((0,), (1,)), "out of order"),
    ):
        with pytest.raises(SecateurError, match=words):
            Blocks("a", inputs, outputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda step: step["layers"][0].pop("inputs"),
        lambda step: step["layers"][0].update(inputs=["0-99999999999"]),
        lambda step: step["layers"][0].update(inputs=["0 1", "1 2"]),
        lambda step: step["layers"][0].update(inputs=["0-1"] * 9999),
        lambda step: step["layers"][0].update(layer="nothing"),
        lambda step: step["layers"][0].update(layer="one\n"),
        lambda step: step["layers"].append(step["layers"][0]),
        lambda step: step.update(extra=1),
        lambda step: step.update(layers=3),
    ],
)
def test_forged_files_are_one_sentence(change) -> None:  # type: ignore[no-untyped-def]
    value = json.loads(json.dumps(to_json(mixed(network()))))
    change(value["steps"][0])
    with pytest.raises(SecateurError, match="reading a plan"):
        from_json(value)


def planted(workers: int = 3, per: int = 4, noise: float = 0.0) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A chain whose inner layers are block-diagonal after hidden permutations; axis to the worker of each unit."""
    torch.manual_seed(0)
    draw = np.random.default_rng(1)
    n = workers * per
    model = nn.Sequential(nn.Linear(5, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3))
    owners = {name: draw.permutation(np.arange(n) % workers) for name in ("0", "2", "4")}
    with torch.no_grad():
        for layer, reads in (("2", "0"), ("4", "2")):
            same = torch.from_numpy(owners[layer][:, None] == owners[reads])
            weight = model.get_submodule(layer).weight
            weight.copy_(torch.where(same, weight.sign() * (0.5 + weight.abs()), noise * weight))
    return model.double(), owners


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_planted_blocks_are_found(workers: int, noise: float) -> None:
    model, owners = planted(workers, noise=noise)
    axes = trace(model, torch.zeros(1, 5, dtype=torch.float64))
    plan = allocate.partition(model, axes, workers)
    assert [b.module for b in plan.steps[0].layers] == ["2", "4"]
    for blocks in plan.steps[0].layers:
        reads = owners[str(int(blocks.module) - 2)]
        for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True):
            assert len({*reads[list(inputs)], *owners[blocks.module][list(outputs)]}) == 1
    if not noise:
        assert shares(plan, model) == pytest.approx({"2": 1.0, "4": 1.0})
        torch.testing.assert_close(plan.apply(model)(torch.ones(1, 5).double()), model(torch.ones(1, 5).double()))


def test_weights_that_are_no_numbers_and_half_a_worker_are_told() -> None:
    model, _ = planted(2, noise=0.1)
    axes = trace(model, torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(SecateurError, match="whole number of two workers"):
        allocate.partition(model, axes, 2.0)  # type: ignore[arg-type]
    model[2].weight.data[1, 1] = torch.nan
    with pytest.raises(SecateurError, match="infinite or not a number"):
        allocate.partition(model, axes, 2)


def test_layers_that_follow_share_the_division_and_ends_are_left_whole() -> None:
    model = network()
    axes = trace(model, X)
    plan = allocate.partition(model, axes, 4, kernels=True)
    by_name = {b.module: b for b in plan.steps[0].layers}
    assert set(by_name) == {"two", "three", "four", "five"}
    assert by_name["two"].outputs == by_name["three"].inputs
    assert by_name["four"].outputs == by_name["five"].inputs
    channels = [tuple(sorted({c // 4 for c in group})) for group in by_name["four"].inputs]
    assert tuple(channels) == by_name["three"].outputs, "a channel's plane stays together through flattening"
    points = {b.module for b in allocate.partition(model, axes, 2).steps[0].layers}
    assert points == {"two", "four", "five"}
    with pytest.raises(SecateurError, match="no layer between"):
        allocate.partition(model, axes, 7)
    ends = allocate.partition(
        nn.Sequential(nn.Linear(4, 6)), trace(nn.Sequential(nn.Linear(4, 6)), torch.zeros(1, 4)), 2, ends=True
    )
    assert [b.module for b in ends.steps[0].layers] == ["0"]


def test_the_assignment_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        gain = draw.normal(size=(6, 3))
        options = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
        best = max(sum(gain[u, w] for u, w in enumerate(option)) for option in options)
        assert gain[np.arange(6), balanced(gain)].sum() == pytest.approx(best)


def divided(workers: int) -> tuple[nn.Module, nn.Module, Axes, Plan, torch.Tensor]:
    """A planted network, what a plan for so many workers makes of it, its axes, the plan, and inputs."""
    model, _ = planted(workers, noise=1.0)
    x = torch.randn(7, 5, dtype=torch.float64)
    axes = trace(model, x)
    plan = allocate.partition(model, axes, workers)
    return model, plan.apply(model), axes, plan, x


def test_parts_of_workers_add_up_and_hold_no_weight_of_another() -> None:
    _, small, axes, plan, x = divided(3)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # "trained further"
    parts = [worker(small, axes, plan, rank, example=x) for rank in range(3)]
    torch.testing.assert_close(sum(part(x) for part in parts), small(x))
    inner = sum(part.get_submodule(n).weight.numel() for part in parts for n in ("2", "4"))
    assert inner == sum(small.get_submodule(n).weight.numel() for n in ("2", "4"))
    with pytest.raises(SecateurError, match="from 0 to 2"):
        worker(small, axes, plan, 3)


def test_a_network_with_a_plane_behind_its_convolutions_divides_and_adds_up() -> None:
    """The units of a fixed axis, the plane that is flattened, own entries of every worker; dense weights are divided first."""
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 5))
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model, x = nn.Sequential(*layers, *head).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    axes = trace(model, x)
    plan = allocate.partition(model, axes, 4, kernels=True)
    assert {blocks.module for blocks in plan.steps[0].layers} == {"3", "6"}
    small = plan.apply(model)
    for network in (model, small):
        parts = [worker(network, axes, plan, rank, example=x) for rank in range(4)]
        torch.testing.assert_close(sum(part(x) for part in parts), small(x))


def test_a_network_whose_parts_do_not_add_up_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(-1)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    axes = trace(model, x)
    plan = allocate.partition(model, axes, 2)
    with pytest.raises(SecateurError, match="do not add up"):
        worker(model, axes, plan, 0, example=x)


def test_a_worker_of_another_plan_other_outputs_and_numbers_that_are_none_are_told() -> None:
    model, small, axes, plan, x = divided(2)

    def striped(groups: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        count = sum(map(len, groups))
        return tuple(tuple(range(worker, count, 2)) for worker in range(2))

    layers = plan.steps[0].layers
    other = split(plan.fingerprint, [Blocks(b.module, striped(b.inputs), striped(b.outputs)) for b in layers])
    assert other != plan
    with pytest.raises(SecateurError, match="that is divided otherwise; give the plan that the model was split by"):
        worker(small, axes, other, 0)
    worker(model, axes, other, 0, example=x)
    for rank in ("0", 0.5, -1, None):
        with pytest.raises(SecateurError, match="from 0 to 1"):
            worker(small, axes, plan, rank)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="a batch with inputs of shape"):
        worker(small, axes, plan, 0, example=x[:, :3])

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.body(x)
            return y, -y

    pair = Pair().eval()
    found = trace(pair, x)
    with pytest.raises(SecateurError, match="an output of type tuple; divide a network that puts out one tensor"):
        worker(pair, found, allocate.partition(pair, found, 2), 0, example=x)
    for wrong in ({"tries": 0}, {"tries": 1.5}, {"seed": -1}, {"seed": "a"}):
        with pytest.raises(SecateurError, match="give whole numbers, tries from 1 and a seed from 0"):
            allocate.partition(model, axes, 2, **wrong)  # type: ignore[arg-type]


def test_a_split_network_traces_and_trains() -> None:
    model = network()
    small = mixed(model).apply(model)
    axes = trace(small, X)
    assert axes.count("params") == sum(p.numel() for p in small.parameters())
    for axis in axes.free:
        plan = axes.plan({axis.name: range(1, axis.units)})
        torch.testing.assert_close(plan.apply(small)(X), plan.preview(small)(X))
    small.train()(X).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert isinstance(small.five, BlockDiagonal)


@pytest.mark.parametrize("net", ZOO)
def test_the_zoo_divides_or_says_why_not(net: str) -> None:
    torch.manual_seed(0)
    build, example = ZOO[net]
    model, x = build().eval(), example()
    axes = trace(model, x)
    refused = ""
    try:
        plan = allocate.partition(model, axes, 2, kernels=True, tries=1)
    except SecateurError as error:
        refused = str(error)
    if refused:
        assert "no layer between two axes" in refused
        return
    assert distance(plan.preview(model).eval(), plan.apply(model), x) < 1e-4
    assert loads(dumps(plan)) == plan
    assert all(0 < share <= 1 for share in shares(plan, model).values())


SCRIPT = """
import os, sys, torch, torch.distributed as dist
sys.path[:0] = [{tests!r}]
from test_split import planted
from secateur import allocate, trace
from secateur.search import across
from secateur.surgery.workers import summed, worker
dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
model, _ = planted(2, noise=1.0)
x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
axes = trace(model, x)
plan = allocate.partition(model, axes, 2)
assert torch.allclose(summed(worker(model, axes, plan, rank), x), plan.apply(model)(x))
asked = []
def judge(plan):
    asked.append(plan)
    return float(sum(after for _, after in plan.widths().values()))
plans = [axes.plan({{"0": range(n)}}) for n in (1, 2, 3, 4, 5)]
assert across(judge)(plans) == [judge(plan) for plan in plans]
assert len(asked) == (3 if rank == 0 else 2) + 5
def broken(plan):
    if rank == 1:
        raise ValueError("no")
    return 0.0
try:
    across(broken)(plans)
except Exception as error:
    assert "process 1: ValueError: no" in str(error), error
else:
    raise SystemExit("not told")
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # a thread of gloo's that lets go of a tensor while Python ends would abort the process
"""


def test_two_processes_put_out_what_one_does_and_share_trials(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.parametrize("kind", ["blocks", "product"])
def test_hooks_on_a_layer_go_on_with_what_replaces_it(kind):
    model, seen = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), []
    first = model[0]
    handles = [
        first.register_forward_pre_hook(lambda module, args: seen.append(("before", tuple(args[0].shape)))),
        first.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(("after", tuple(output.shape))), with_kwargs=True
        ),
        first.register_full_backward_hook(lambda module, into, out: seen.append(("back", tuple(out[0].shape)))),
    ]
    if kind == "blocks":
        plan = split(fingerprint(model), [Blocks("0", ((0, 1), (2, 3)), ((0, 1, 2), (3, 4, 5)))])
    else:
        plan = factor(fingerprint(model), [Product("0", "linear", (1,))])
    x = torch.randn(5, 4, requires_grad=True)
    wanted = [("before", (5, 4)), ("after", (5, 6)), ("back", (5, 6))]
    small = plan.apply(model)
    small(x).sum().backward()
    assert seen == wanted, "a copy has them"
    plan.apply_(model)
    assert model[0] is not first
    seen.clear()
    model(x).sum().backward()
    assert seen == wanted
    for handle in handles:
        handle.remove()
    seen.clear()
    model(x).sum().backward()
    assert not seen, "handles know where they are"
