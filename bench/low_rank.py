"""Low rank on CIFAR-10 from pretrained weights: trained, or decomposed, at equal MACs and equal training.

    python bench/low_rank.py --data FOLDER [--model cifar_resnet20_a] [--keep 0.5 0.333 0.222] [--methods trp svd ...]

Every method gets `--epochs` of training in all. Trained methods spend `--share` of it on the dense network while its rank
falls, decompose, and fine-tune for the rest; the others decompose first and fine-tune for all of it. Fractions of an epoch
are that share of one pass. Test images are looked at before and after fine-tuning, and decide nothing. Each row is a file
bench/results/low_rank/MODEL/METHOD-KEEP-SEED.json; rows that are there are not run again. "dense" is the network as it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import command, onnx_milliseconds, pretrained
from secateur import TRP, lowrank, repair
from secateur.core.factor import Format
from secateur.core.plan import Plan
from secateur.io.files import write_json
from secateur.measure import compare, facts
from secateur.measure.machine import hardware, versions
from secateur.recipes import schema
from secateur.recipes.parts import limited, load_data
from secateur.train import FitSettings, distillation, evaluate, fit, holding, taught

RESULTS = Path(__file__).parent / "results" / "low_rank"
STATISTICS = 20
"""Training batches without augmentation that methods with data look at."""
ROWS = 8192
"""Positions of each of them that their covariances are of: neighbours show much the same."""


@dataclass(frozen=True)
class Part:
    """The first `steps` batches of every pass."""

    batches: Any
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.steps)

    def epoch(self, number: int) -> Iterator[Any]:
        """The pass of that number."""
        return islice(self.batches.epoch(number), self.steps)


@dataclass(frozen=True)
class Work:
    """What a method is given: the pretrained network, data, the share of MACs to keep and steps to train for."""

    model: nn.Module
    example: torch.Tensor
    train: Any
    plain: list[Any]
    keep: float
    steps: int
    options: argparse.Namespace

    def tune(
        self, model: nn.Module, steps: int, lr: float, *, hooks: tuple[Any, ...] = (), seed: int = 0, teacher: Any = None
    ) -> None:
        """SGD over `steps` batches, the rate falling along a cosine; a teacher's answers count half."""
        options = self.options
        how = {"precision": options.precision, "channels_last": True, "weight_decay": options.weight_decay}
        settings = FitSettings(epochs=1, lr=lr, seed=options.seed + seed, **how)
        batches: Any = Part(self.train, steps)
        if teacher is None:
            fit(model, batches, settings, hooks=hooks)
        else:
            fit(model, taught(batches, teacher, precision=options.precision), settings, loss=distillation(0.5), hooks=hooks)


def trp(work: Work, **changes: Any) -> tuple[Plan, nn.Module, int]:
    """The paper's rule: energy 0.98 every 20 steps, lambda 3e-4; the budget decides the ranks at the end."""
    steps = trained_steps(work)
    hook = TRP(work.model, format="spatial", **changes)
    work.tune(work.model, steps, work.options.lr, hooks=(hook,))
    plan = hook.plan({"macs": work.keep}, example=work.example)
    return plan, plan.apply(work.model), steps


def trp_ranks(
    work: Work, teacher: bool = False, descent: float = 0.0, aware: tuple[Format, ...] = (), **changes: Any
) -> tuple[Plan, nn.Module, int]:
    """Ranks first, one share of energy in all layers under the budget; a truncation after every step, momentum within them.

    With formats in `aware`, ranks, each layer's format and first weights are those that responses ask for.
    """
    steps = trained_steps(work)
    parent = deepcopy(work.model) if teacher else None
    if aware:
        target, small, _ = fitted(work, aware)
        lowrank.merge_(work.model, small, target)
    else:
        target, _, _ = decomposed(work, "spatial")
    hooks = holding(work.model, target, descent=round(descent * steps), **changes)
    work.tune(work.model, steps, work.options.lr, hooks=hooks, teacher=parent)
    return target, target.apply(work.model), steps


def svd(work: Work) -> tuple[Plan, nn.Module, int]:
    """Data-free: channel products of the pretrained weights, one share of energy in all layers."""
    return decomposed(work, "channel")


def jaderberg(work: Work) -> tuple[Plan, nn.Module, int]:
    """Jaderberg et al., 2014, on filters: spatial products of the pretrained weights, one share of energy in all layers."""
    return decomposed(work, "spatial")


def zhang(work: Work) -> tuple[Plan, nn.Module, int]:
    """Zhang et al., 2016, linear case: channel products, ranks by the energy of responses, values by their components."""
    return fitted(work, ("channel",))


def data_aware(work: Work) -> tuple[Plan, nn.Module, int]:
    """Channel or spatial by layer, ranks by the energy of responses, values fitted to them."""
    return fitted(work, ("channel", "spatial"))


def dense(work: Work) -> tuple[Plan, nn.Module, int]:
    """The pretrained network, fine-tuned like the others."""
    return Plan({}), work.model, 0


METHODS: dict[str, Callable[[Work], tuple[Plan, nn.Module, int]]] = {
    "dense": dense,
    "svd": svd,
    "jaderberg": jaderberg,
    "zhang": zhang,
    "data_aware": data_aware,
    "trp": trp,
    "trp_ranks": trp_ranks,
    "trp_aware": partial(trp_ranks, aware=("spatial",)),
    "trp_aware_taught": partial(trp_ranks, aware=("channel", "spatial"), teacher=True),
    # the parts of trp_ranks, one changed at a time
    "trp_ranks_no_projection": partial(trp_ranks, project_momentum=False),
    "trp_ranks_taught": partial(trp_ranks, teacher=True),
    "trp_ranks_gradual": partial(trp_ranks, descent=0.6),
    # ways of the nuclear norm, in the paper's rule
    "trp_no_nuclear": partial(trp, nuclear=0.0),
    "trp_decay": partial(trp, nuclear_by="decay", nuclear=3e-2),
    "trp_proximal": partial(trp, nuclear_by="proximal", nuclear=3e-2, energy=1.0),
    "trp_projection": partial(trp, project_momentum=True),
    "trp_adaptive": partial(trp, adaptive=True),
}


def trained_steps(work: Work) -> int:
    """Steps of the low-rank training: a multiple of the period, so that the last one ends at truncated weights."""
    return max(20, int(work.steps * work.options.share) // 20 * 20)


def decomposed(work: Work, form: Any) -> tuple[Plan, nn.Module, int]:
    """The plan of one share of energy that meets the budget; TRP that changes nothing knows how to choose it."""
    hook = TRP(work.model, format=form, energy=1.0, nuclear=0.0)
    plan = hook.plan({"macs": work.keep}, example=work.example)
    return plan, plan.apply(work.model), 0


def data_plan(work: Work, formats: tuple[Any, ...]) -> Plan:
    """Ranks by the energy of responses."""
    return lowrank.choose(
        work.model.eval(), work.example, {"macs": work.keep}, formats=formats, multiple=1, batches=work.plain, sample=ROWS
    )


def fitted(work: Work, formats: tuple[Any, ...]) -> tuple[Plan, nn.Module, int]:
    """Ranks and values by responses."""
    plan = data_plan(work, formats)
    small = plan.apply(work.model)
    repair.whitened(work.model, small, work.plain, plan=plan, sample=ROWS)
    return plan, small, 0


def row(name: str, options: argparse.Namespace, keep: float, data: tuple[Any, Any, Any]) -> dict[str, Any]:
    """One method at one budget, from the pretrained weights on."""
    train, plain, test = data
    begun = time.perf_counter()
    torch.manual_seed(options.seed)
    model, whole = (pretrained(options.model, options.data) for _ in range(2))
    example = torch.zeros(1, 3, 32, 32)
    steps = round(options.epochs * len(train))
    work = Work(model, example, train, plain, keep, steps, options)
    plan, small, used = METHODS[name](work)
    made = time.perf_counter() - begun
    before = evaluate(small.eval(), test)
    if steps > used and name != "dense":
        work.tune(small, steps - used, options.lr if not used else options.lr / 5, seed=1)
    after = evaluate(small.eval(), test) if name != "dense" else before
    seconds = time.perf_counter() - begun
    pair = {"dense": whole, "small": small.eval()}
    eager, onnx = compare(pair, torch.randn(1, 3, 32, 32), repeats=50), onnx_milliseconds(pair, torch.randn(1, 3, 32, 32), 50)
    counts = {key: facts(value, example) for key, value in pair.items()}
    return {
        "method": name,
        "what": (METHODS[name].func if isinstance(METHODS[name], partial) else METHODS[name]).__doc__,  # type: ignore[attr-defined]
        "model": options.model,
        "keep": keep,
        "macs": counts["small"].macs,
        "dense_macs": counts["dense"].macs,
        "params": counts["small"].params,
        "dense_params": counts["dense"].params,
        "judged_on": f"{options.holdout} training images held out" if options.holdout else "10,000 test images",
        "before": before["accuracy"],
        "after": after["accuracy"],
        "epochs": {"all": options.epochs, "low_rank": round(used / len(train), 4), "batches": steps},
        "training": {
            "lr": options.lr,
            "weight_decay": options.weight_decay,
            "batch": options.batch,
            "precision": options.precision,
        },
        "latency_ms": {
            "eager": eager["small"],
            "dense_eager": eager["dense"],
            "onnx": onnx["small"],
            "dense_onnx": onnx["dense"],
        },
        "plan": str(plan).splitlines(),
        "command": command("low_rank.py", FOLDER=options.data),
        "versions": versions(),
        "hardware": hardware("cpu", options.threads),
        "seed": options.seed,
        "seconds": {"to_decomposition": round(made, 1), "all": round(seconds, 1)},
    }


def main() -> None:
    """Run the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with CIFAR-10 and weights/")
    parser.add_argument("--model", default="cifar_resnet20_a")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=["dense", "trp_ranks", "svd", "jaderberg", "data_aware"]
    )
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.3333, 0.2222], help="shares of the dense MACs")
    parser.add_argument("--epochs", type=float, default=0.5)
    parser.add_argument("--share", type=float, default=0.75, help="of the epochs, spent before the decomposition")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"), help="of training; tests are in float32")
    parser.add_argument("--holdout", type=int, default=0, help="judge on so many training images: for trying things out")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = {
        "name": "cifar10",
        "folder": str(options.data),
        "batch": options.batch,
        "normalise": "imagenet",
        "holdout": options.holdout,
    }
    recipe = schema.from_dict({"model": {"build": f"zoo:{options.model}"}, "data": table, "seed": options.seed})
    train, plain, held, test = load_data(recipe, torch.device("cpu"))
    data = (train, limited(plain, STATISTICS, torch.device("cpu")), held or test)
    for keep in options.keep:
        for name in options.methods:
            keep_ = 1.0 if name == "dense" else keep
            path = options.out / options.model / f"{name}-{keep_:g}-{options.seed}.json"
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            found = row(name, options, keep_, data)
            write_json(path, found)
            print(name, keep_, f"{found['before']:.4f} {found['after']:.4f}", found["seconds"], flush=True)


if __name__ == "__main__":
    main()
