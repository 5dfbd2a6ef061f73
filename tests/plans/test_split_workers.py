"""Workers of a divided network: their parts add up, in one process and in two, and what does not is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cut_networks import planted
from scripts import ROOT
from secateur import allocate, trace
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan, split
from secateur.core.split import Blocks
from secateur.surgery.workers import worker


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


SCRIPT = """
import os, sys, torch, torch.distributed as dist
sys.path[:0] = [{tests!r}]
from cut_networks import planted
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
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests" / "helpers")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
