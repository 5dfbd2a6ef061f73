"""Prints what the rank term of RPG adds to a training step, over gradual magnitude pruning with the same masks and growth.

    python bench/rank_overhead.py --model cifar_resnet20_a [--batch 128] [--device cpu] [--out FILE]

A step is forward, backward, hook and optimizer on random images; the share of training time is the median seconds of one rank
term, over `--every` steps where it only chooses what grows (100 as released), or over the steps between two
eigendecompositions plus the cheap ones where it acts in each step (none where the push is held for `--held` steps), divided by
the median seconds of a step of GMP.
The reference is a full SVD layer by layer, as the released code does. Models: those of the zoo, or of torchvision (resnet50).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from common import network, seconds
from secateur.io.files import write_json
from secateur.measure import machine
from secateur.train import sparse
from secateur.train.sparse import Rank
from secateur.train.sparse.rank import RankTerm
from secateur.train.sparse.weights import Weight


def reference(weights: list[Weight]) -> None:
    """One full decomposition per layer, as in the released code."""
    for weight in weights:
        matrix = weight.tensor.detach().flatten(1)
        norm = matrix.norm()
        u, s, v = torch.linalg.svd(matrix / norm, full_matrices=False)
        k = len(s) - 1 - int((s.square().flip(0).cumsum(0) - 0.2).abs().argmin())
        (u[:, :k] * s[:k]) @ v[:k]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds, and shares of training time."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = network(options.model).to(device).train()
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    labels = torch.randint(0, 10, (options.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    # masks as they are at 98 per cent, without a change within the steps that are timed
    hook = sparse.fixed(model, sparse.one_shot(model, 0.02), optimizer=optimizer)

    def step() -> None:
        functional.cross_entropy(model(images), labels).backward()
        hook.after_backward()
        optimizer.step()
        hook.after_step()
        optimizer.zero_grad()

    term = RankTerm(Rank(4.0, 0.2), hook.weights)
    term.gradients()
    step()
    times: dict[str, list[float]] = {"step": [], "fresh": [], "stale": [], "reference": []}
    for round_ in range(options.rounds):
        times["step"].append(seconds(step, device))
        times["fresh"].append(seconds(term.gradients, device))
        times["stale"].append(seconds(lambda: term.gradients(fresh=False), device))
        if round_ < options.references:
            times["reference"].append(seconds(lambda: reference(term.weights), device))
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    one = medians["step"]
    growth = medians["fresh"] / options.every / one
    each = (medians["fresh"] + (options.between - 1) * medians["stale"]) / options.between / one
    return {
        **{f"{name}_seconds": value for name, value in medians.items()},
        "share_in_growth": growth,
        "share_in_each_step": each,
        "share_in_each_step_held": medians["fresh"] / options.held / one,
        "share_in_each_step_decomposed_each_time": medians["fresh"] / one,
        "reference_share_in_growth": medians["reference"] / options.every / one if "reference" in medians else None,
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet20_a")
    for name, default in (
        ("batch", 128),
        ("size", 32),
        ("every", 100),
        ("between", 10),
        ("held", 25),
        ("rounds", 7),
        ("references", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write; rows of other settings in it stay")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    row = {**settings, **{name: float(f"{v:.4g}") if type(v) is float else v for name, v in measure(options).items()}}
    print(json.dumps(row), flush=True)
    if options.out:
        known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
        rows = [other for other in known if other["model"] != options.model or other["device"] != options.device]
        write_json(options.out, {**machine.record(), "rows": [*rows, row]})


if __name__ == "__main__":
    main()
