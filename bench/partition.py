"""Partition pruning on Fashion-MNIST: accuracy, weight kept, critical path and bytes moved, beside tensor parallelism.

    python bench/partition.py --data FOLDER [--workers 2,4] [--width 512] [--epochs 2] [--out FILE]

A network of four hidden layers is trained, divided over p workers, fine-tuned as it then is (the blocks hold it), and run:
dense in one process, as blocks in one process, and truly in parallel on p processes (gloo). Beside it the dense network runs
in tensor parallelism: layers in pairs, the first by rows and the second by columns, with one sum over the hidden width behind
each pair (Shoeybi et al., 2019). Bytes are what one worker sends per image in ring sums, 2 (p - 1) / p of the vector's size.
The critical path is the largest number of multiplications of one worker. Times are medians, one thread per process; with more
processes than cores they say little about parallel speed, and the file says how many cores there were.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import command
from secateur import allocate, measure, trace
from secateur.allocate.partition import shares
from secateur.data import BatchSettings, fashion_mnist, loaders
from secateur.io import write_json
from secateur.measure import machine
from secateur.surgery.workers import summed, worker
from secateur.train import FitSettings, evaluate, fit

ROOT = Path(__file__).resolve().parents[1]
BATCH, ROUNDS = 64, 30


def build(width: int) -> nn.Module:
    """784 inputs, four hidden layers, ten classes."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((784, width), (width, width), (width, width), (width, width)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def timed(run: Any, x: Tensor) -> float:
    """Median milliseconds of a forward on a batch; processes start together."""
    taken = []
    with torch.inference_mode():
        for turn in range(ROUNDS + 3):
            if dist.is_initialized():
                dist.barrier()
            start = time.perf_counter()
            run(x)
            if turn >= 3:
                taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


class TensorParallel(nn.Module):
    """One worker's rows of a layer and columns of the next, pair by pair, of the dense network."""

    def __init__(self, model: nn.Module, rank: int, world: int) -> None:
        super().__init__()
        whole = copy.deepcopy(model)
        layers = [m for m in whole if isinstance(m, nn.Linear)]
        norms = [m for m in whole if isinstance(m, nn.BatchNorm1d)]
        self.norms, self.layers = nn.ModuleList(norms), nn.ModuleList(layers)
        with torch.no_grad():
            for number, layer in enumerate(layers[:4]):
                mine = slice(rank * len(layer.weight) // world, (rank + 1) * len(layer.weight) // world)
                if number % 2 == 0:
                    layer.weight, layer.bias = nn.Parameter(layer.weight[mine].clone()), nn.Parameter(layer.bias[mine].clone())
                    norm = norms[number]
                    for name in ("weight", "bias"):
                        setattr(norm, name, nn.Parameter(getattr(norm, name)[mine].clone()))
                    norm.running_mean, norm.running_var = norm.running_mean[mine].clone(), norm.running_var[mine].clone()
                else:
                    columns = slice(rank * layer.weight.shape[1] // world, (rank + 1) * layer.weight.shape[1] // world)
                    layer.weight = nn.Parameter(layer.weight[:, columns].clone())
                    layer.bias = nn.Parameter(layer.bias.detach() / world)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the dense network, on every process."""
        x = x.flatten(1)
        for first in (0, 2):
            x = self.norms[first](self.layers[first](x)).relu()
            x = self.layers[first + 1](x)
            dist.all_reduce(x)
            x = self.norms[first + 1](x).relu()
        return self.layers[4](x)


def process(folder: Path) -> None:
    """What one of p processes does: both networks, checked against one process, and timed."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    state = torch.load(folder / "state.pt", weights_only=False)
    part = worker(state["small"].eval(), state["axes"], state["plan"], rank).eval()
    parallel = TensorParallel(state["dense"].eval(), rank, world).eval()
    x = state["x"]
    with torch.inference_mode():
        errors = [
            float((summed(part, x) - state["small"].eval()(x)).abs().max()),
            float((parallel(x) - state["dense"].eval()(x)).abs().max()),
        ]
    found = {"blocks_ms": timed(lambda x: summed(part, x), x), "tensor_parallel_ms": timed(parallel, x), "errors": errors}
    found["macs"] = measure.facts(part, x[:1]).macs
    told: list[Any] = [None] * world
    dist.all_gather_object(told, found)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def row_of(arguments: argparse.Namespace, dense: nn.Module, data: Any, workers: int) -> dict[str, Any]:
    """All that is measured for one number of workers."""
    x = next(iter(data.test))[0][:BATCH]
    axes = trace(dense, x)
    plan = allocate.partition(dense, axes, workers)
    small = plan.apply(dense)
    row: dict[str, Any] = {"workers": workers, "kept": shares(plan, dense), "before": evaluate(small, data.test)["accuracy"]}
    fit(small, data.train, FitSettings(arguments.epochs, lr=0.02, weight_decay=5e-4))
    row["after"] = evaluate(small, data.test)["accuracy"]
    row["same_training_dense"] = arguments.longer
    row["params"] = measure.facts(small).params
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save({"small": small, "axes": axes, "plan": plan, "dense": dense, "x": x}, folder / "state.pt")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", __file__, "--process", name]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        told = json.loads((folder / "found.json").read_text())
    ring = 2 * (workers - 1) / workers * 4
    row["errors"] = [max(t["errors"][i] for t in told) for i in (0, 1)]
    row["critical_path_macs"] = {
        "dense": measure.facts(dense, x[:1]).macs,
        "blocks": max(t["macs"] for t in told),
        "tensor_parallel": (784 + 3 * arguments.width) * arguments.width // workers + 10 * arguments.width,
    }
    row["bytes_per_image"] = {"blocks": ring * 10, "tensor_parallel": ring * 2 * arguments.width}
    row["ms"] = {
        "dense, one process": timed(dense.eval(), x),
        "blocks, one process": timed(small.eval(), x),
        "blocks, parallel": max(t["blocks_ms"] for t in told),
        "tensor parallel": max(t["tensor_parallel_ms"] for t in told),
    }
    return row


def main() -> None:
    """Train, divide, run; write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SECATEUR_DATA"))
    parser.add_argument("--workers", default="2,4")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "channel" / "partition.json")
    parser.add_argument("--process", type=Path)
    arguments = parser.parse_args()
    if arguments.process:
        process(arguments.process)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    data = loaders(fashion_mnist(arguments.data), BatchSettings(batch=128, holdout=0, augment=False))
    dense = build(arguments.width)
    fit(dense, data.train, FitSettings(2 * arguments.epochs, lr=0.05, weight_decay=5e-4))
    accuracy = evaluate(dense, data.test)["accuracy"]
    longer = copy.deepcopy(dense)
    fit(longer, data.train, FitSettings(arguments.epochs, lr=0.02, weight_decay=5e-4))
    arguments.longer = evaluate(longer, data.test)["accuracy"]
    rows = [row_of(arguments, dense, data, int(word)) for word in arguments.workers.split(",")]
    value = {
        "command": command("partition.py", FOLDER=arguments.data, FILE=arguments.out),
        "data": "fashion_mnist",
        "seed": 0,
        "batch": BATCH,
        "dense": {"accuracy": accuracy, "params": measure.facts(dense).params},
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, value)
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
