"""Sparse training of pretrained networks, method against method on one short schedule; one JSON file per run.

    SECATEUR_DATA=FOLDER python bench/sparse_training.py --model resnet20 --methods gmp,rpg_b --keep 0.02 --seeds 0,1
    SECATEUR_DATA=FOLDER python bench/sparse_training.py --list bench/sparse_runs.txt

A run whose file is in --out is not repeated. All methods of one network and share see the same batches, steps and learning
rates, gradients clipped at 3 as ST-3's script does; nothing was tuned on them, and test images are looked at once, after the
last step. Each line of a list holds the
options of one call. `docs/make/sparse.py` turns the files into docs/results/sparse.md.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from common import pretrained
from secateur import data
from secateur.io.files import write_json
from secateur.measure import machine, rank_facts
from secateur.recipes import zoo
from secateur.train import FitSettings, Sparse, evaluate, fit, sparse
from secateur.train.sparse import Growth, Layout, Ramp, Rank

Make = Callable[[nn.Module, float, int, int], Sparse]


def on_base(reading: Literal["st3", "acdc"], strength: float) -> Make:
    """The rank term in each step of another method, `strength` of the task's gradient in every layer."""
    return lambda m, k, s, e: sparse.rpg(m, k, s, reading=reading, rank=Rank(strength, 0.2, "step", 20, normalise=True))


USUAL, GENTLE = Growth(), Growth(drop=0.02, skip_step=False)
"""What regrows in each change of masks: a share of 0.3 that falls, as published, and little, for short schedules."""


def gradual(
    rank: Callable[[float], Rank] | None = None, *, growth: Growth | None = USUAL, layout: Layout | None = None
) -> Make:
    """Gradual pruning as all such methods have it here: a cubic ramp to half of training, masks frozen from 0.8 on.

    `rank` is a function of the share that is kept.
    """

    def make(model: nn.Module, keep: float, steps: int, every: int) -> Sparse:
        ramp = Ramp(keep, steps, "cubic", every, end=0.5, freeze=0.8)
        return Sparse(model, ramp, growth=growth, rank=rank(keep) if rank else None, layout=layout)

    return make


def published(acts: Literal["growth", "step"]) -> Callable[[float], Rank]:
    """The published lambda and delta of a share."""
    return lambda keep: Rank(*sparse.RPG_PUBLISHED[keep], acts, 10 if acts == "step" else 1)


METHODS: dict[str, tuple[str, Make]] = {
    "gmp": ("GMP", gradual(growth=None)),
    "rigl": ("RigL (ERK)", lambda m, k, s, e: sparse.rigl(m, k, s, every=e)),
    "st3": ("ST-3", lambda m, k, s, e: sparse.st3(m, k, s)),
    "rpg_a": ("RPG A, in each step (0.1, per layer)", gradual(lambda _: Rank(0.1, 0.2, "step", 10, True, True))),
    "rpg_b": ("RPG B, published lambda", gradual(published("growth"))),
    "rpg_st3": ("RPG on ST-3 (0.1, per layer)", on_base("st3", 0.1)),
    "rpg_st3_mild": ("RPG on ST-3 (0.03, per layer)", on_base("st3", 0.03)),
    "rpg_b_gentle": ("RPG B, a fiftieth regrown", gradual(published("growth"), growth=GENTLE)),
    "rpg_0": ("GMP with growth (lambda = 0)", gradual()),
    "rpg_b_layer": ("RPG B, terms per layer (1)", gradual(lambda _: Rank(1.0, 0.2, linear=True, normalise=True))),
    "rpg_a_published": ("RPG A, published lambda", gradual(published("step"))),
    "occupancy": ("lambda = 0, an entry in each row and column", gradual(layout=Layout(occupancy=1))),
    "gmp_occupancy": ("GMP, an entry in each row and column", gradual(growth=None, layout=Layout(occupancy=1))),
    "acdc": ("AC/DC", lambda m, k, s, e: sparse.acdc(m, k, s)),
    "rpg_acdc": ("RPG on AC/DC (0.1, per layer)", on_base("acdc", 0.1)),
    "rpg_acdc_mild": ("RPG on AC/DC (0.03, per layer)", on_base("acdc", 0.03)),
}
"""Key of a file name to what a table says and the hook of (model, keep, steps, every)."""
NETWORKS = {"resnet20": "cifar_resnet20_a", "resnet56": "cifar_resnet56_a"}


@dataclass(frozen=True)
class Steps:
    """The first `steps` batches of each pass."""

    batches: data.Batches
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """The pass of that number; passes over the images follow each other where one is too short."""
        whole = (pair for turn in range(1 << 20) for pair in self.batches.epoch(number + turn))
        return islice(whole, self.steps)


@lru_cache(maxsize=1)
def digits_network() -> nn.Module:
    """The residual network for digits, trained for ten epochs; there are no published weights."""
    torch.manual_seed(0)
    model = zoo.digits_resnet()
    fit(model, data.loaders(data.digits(), data.BatchSettings(64, holdout=0)).train, FitSettings(epochs=10, lr=0.1))
    return model


def start_of(name: str, folder: Path) -> nn.Module:
    """The network with its published weights."""
    return copy.deepcopy(digits_network()) if name == "digits" else pretrained(NETWORKS[name], folder)


def structure(model: nn.Module, names: list[str]) -> dict[str, Any]:
    """Means and sums of `rank_facts` over the weights of `names`."""
    found = rank_facts(model, names=names)
    rows = list(found.values())
    return {
        "mean_rank": sum(row.rank for row in rows) / len(rows),
        "mean_rank_share": sum(row.rank / row.full for row in rows) / len(rows),
        "mean_energy_rank": sum(row.energy_rank for row in rows) / len(rows),
        "empty_rows": sum(row.empty_rows for row in rows),
        "empty_columns": sum(row.empty_columns for row in rows),
        "rows": sum(model.get_parameter(name).shape[0] for name in names),
        "columns": sum(model.get_parameter(name).shape[1] for name in names),
        "ranks": {name: row.rank for name, row in found.items()},
    }


def run(options: argparse.Namespace, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """One training, and what came of it."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    fast = options.precision == "bf16"
    source = data.digits() if options.model == "digits" else data.cifar10(folder).normalised("imagenet")
    cut = data.BatchSettings(options.batch, holdout=options.holdout, channels_last=fast, seed=seed)
    loaders = data.loaders(source, cut)
    model = start_of(options.model, folder)
    told = {"precision": options.precision, "channels_last": fast, "seed": seed}
    settings = FitSettings(epochs=1, lr=options.lr, weight_decay=1e-4, nesterov=False, warmup=0.05, grad_clip=3.0, **told)
    hook = None if method == "dense" else METHODS[method][1](model, options.keep, options.steps, options.every)
    start = time.perf_counter()
    history = fit(model, Steps(loaders.train, options.steps), settings, hooks=[hook] if hook else [])
    seconds = time.perf_counter() - start
    names = [weight.name for weight in sparse.weights_of(model)]
    judged = evaluate(model, loaders.holdout or loaders.test, precision=options.precision)
    if hook is not None:
        hook.plan().check(model)
    return {
        **machine.record(),
        "model": options.model,
        "method": method,
        "keep": options.keep,
        "seed": seed,
        "steps": options.steps,
        "every": options.every,
        "batch": options.batch,
        "lr": options.lr,
        "precision": options.precision,
        "accuracy": judged["accuracy"],
        "test_loss": judged["loss"],
        "train_loss": history[-1]["loss"] if history else None,
        "density": hook.density if hook else 1.0,
        "seconds": round(seconds, 1),
        **structure(model, names),
    }


def call(words: list[str] | None) -> None:
    """Carry out what one call asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20", choices=["digits", *NETWORKS])
    parser.add_argument("--methods", default="gmp", help=f"of {', '.join(METHODS)}, dense")
    parser.add_argument("--keep", type=float, default=0.05)
    parser.add_argument("--seeds", default="0")
    for name, default in (("steps", 250), ("every", 8), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--holdout", type=int, default=0, help="judge on so many training images: for trying things out")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/sparse"))
    parser.add_argument("--list", type=Path, help="a file of calls")
    options = parser.parse_args(words)
    if options.list:
        for line in options.list.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                call([*shlex.split(line), "--out", str(options.out)])
        return
    folder = Path(os.environ.get("SECATEUR_DATA", "."))
    options.out.mkdir(parents=True, exist_ok=True)
    for method in options.methods.split(","):
        for seed in map(int, options.seeds.split(",")):
            path = options.out / f"{options.model}_{method}_{options.keep:g}_{seed}.json"
            if not path.exists():
                result = run(options, method, seed, folder)
                write_json(path, result)
                told = {key: result[key] for key in ("accuracy", "mean_rank", "empty_rows", "empty_columns", "seconds")}
                print(path.stem, told, flush=True)


if __name__ == "__main__":
    call(None)
