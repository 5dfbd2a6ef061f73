"""Channel pruning with a short fine-tune, the same for every method, from published CIFAR-10 weights.

    python bench/channel_tune.py cifar_resnet56_a --data FOLDER [--methods 'whole-model cap,tp l2'] [--epochs 5]

Methods are the criteria of bench/channel.py, ours and Torch-Pruning's ("tp ..."), on the same axes: channels inside blocks, cut
to `--speedup` times fewer MACs. What is cut is repaired by least squares and batch norm on `--calibration` training images and
trained for `--epochs`: SGD with Nesterov momentum, the rate falling along a cosine, towards labels, the dense parent's answers
(`--alpha`, temperature 4; with `--teachers`, the mean of theirs and its) and its block outputs (`--blocks`). "elimination of
both sides" is fitted as it is selected, on `--two-sided-images`, and not repaired again. "dense" is the parent itself, trained
like the others. `--distil` steps of `repair.distil` on the same images, which look at no labels, come before.

`--holdout` training images are left out: they say which epoch is best. Test accuracy is that
of the last epoch, in float32; that of the best epoch stands beside it. `--judge holdout` leaves test images alone, for tries of
settings. One file per method and seed below bench/results/channel_tune/MODEL; those that are there are not run again, and a
run that was stopped goes on after its last epoch. The page is made by docs/make/channel.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import channel
from channel_methods import BOTH, plans
from common import command, onnx_milliseconds, pretrained
from secateur.core.plan import Plan
from secateur.data import Batches, BatchSettings, cifar10, loaders
from secateur.io import write_json
from secateur.measure import compare, facts, machine
from secateur.recipes.reconstruct import repair_by_name
from secateur.repair import distil
from secateur.train import FitSettings, distillation, evaluate, fit, taught

RESULTS = Path(__file__).parent / "results" / "channel_tune"
METHODS = ("whole-model cap", "group_fisher", "tp l2", "tp fpgm")


class Blocks:
    """A hook whose loss is `weight` times the mean over blocks of the squared error, relative to the teacher's output.

    Blocks are the modules that two convolutions make. The teacher has answered on the same images just before.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, weight: float) -> None:
        self.weight = weight
        self.told: dict[str, Tensor] = {}
        self.found: dict[str, Tensor] = {}
        for network, held in ((teacher, self.told), (model, self.found)):
            for name, module in network.named_modules():
                if hasattr(module, "conv2"):
                    module.register_forward_hook(lambda _, __, output, name=name, held=held: held.__setitem__(name, output))

    def loss(self) -> Tensor | float:
        """The distance at the last forward."""
        errors = []
        for name, mine in self.found.items():
            mine, theirs = mine.float(), self.told[name].float()
            errors.append((mine - theirs).square().sum() / theirs.square().sum().clamp_min(1e-12))
        return self.weight * torch.stack(errors).mean()

    def after_backward(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Together(nn.Module):
    """The mean of the answers of several networks."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (N, 3, H, W) images."""
        return torch.stack([network(images).float() for network in self.networks]).mean(0)


def cut(method: str, bench: channel.Bench, options: Namespace) -> tuple[Plan, nn.Module]:
    """The plan of a method, and the network it leaves, repaired."""
    if method == "dense":
        return bench.axes.plan({}), copy.deepcopy(bench.model)
    _, plan, small = next(plans(method, bench, [1 / options.speedup], options.seed))
    if method in BOTH and small is not None:
        return plan, small
    how = "batchnorm" if small is not None else "least_squares+batchnorm"
    small = small if small is not None else plan.apply(bench.model)
    repair_by_name(how, plan, sample=channel.SAMPLE)(bench.model, small, bench.calibration)
    return plan, small


def images_of(options: Namespace) -> Batches:
    """Augmented training images, without those that are held out."""
    held = options.calibration + options.holdout
    data = cifar10(options.data).normalised("imagenet")
    train = loaders(data, BatchSettings(batch=options.batch, holdout=held, channels_last=True, seed=options.seed)).train
    return train if options.images is None else train.first(options.images)


def tuned(small: nn.Module, bench: channel.Bench, train: Any, options: Namespace, checkpoint: Path) -> list[dict[str, Any]]:
    """Train `small`; one record per epoch."""
    settings = FitSettings(
        epochs=options.epochs, lr=options.lr, weight_decay=options.weight_decay, warmup=0.1, precision="bf16",
        channels_last=True, seed=options.seed,
    )  # fmt: skip
    teacher = copy.deepcopy(bench.model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def judged(model: nn.Module) -> dict[str, float]:
        found = {"accuracy": channel.accuracy(model, bench.holdout)}
        return found | ({"test": channel.accuracy(model, bench.test)} if options.judge == "test" else {})

    def told(record: dict[str, Any]) -> None:
        print(json.dumps(record), flush=True)

    hooks = (Blocks(small, teacher, options.blocks),) if options.blocks else ()
    loss = distillation(options.alpha, 4.0)
    others = [pretrained(name, options.data) for name in options.teachers.split(",") if name]
    together = channel.fast(Together(teacher, *others)).eval()
    if options.compile:
        small.compile()
        together.compile()
    batches = taught(train, together, precision="bf16")
    return fit(small, batches, settings, loss=loss, hooks=hooks, evaluate=judged, checkpoint=checkpoint, on_epoch=told)


def latencies(model: nn.Module, small: nn.Module, example: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of one image, eager and in ONNX Runtime, on one thread."""
    pair = {"dense": model, "small": small.eval()}
    eager, onnx = compare(pair, example, repeats=repeats), onnx_milliseconds(pair, example, repeats)
    return {"eager": eager["small"], "dense_eager": eager["dense"], "onnx": onnx["small"], "dense_onnx": onnx["dense"]}


def row(method: str, bench: channel.Bench, train: Any, options: Namespace, checkpoint: Path) -> dict[str, Any]:
    """One method, from the pretrained weights on."""
    begun, busy = time.perf_counter(), time.process_time()
    torch.manual_seed(options.seed)
    plan, small = cut(method, bench, options)
    made = time.perf_counter() - begun
    images = bench.test if options.judge == "test" else bench.holdout
    before = evaluate(small.eval(), images)["accuracy"]
    began = time.perf_counter()
    if options.distil:
        small = channel.fast(small)
        distil(channel.fast(copy.deepcopy(bench.model)), small, train, steps=options.distil, precision="bf16")
    apart = time.perf_counter() - began
    plain = copy.deepcopy(small)  # hooks of the training stay behind
    epochs = tuned(small, bench, train, options, checkpoint)
    plain.load_state_dict(small.state_dict())
    last, dense = evaluate(plain.eval(), images)["accuracy"], evaluate(bench.model, images)["accuracy"]
    best = max(epochs, key=lambda record: record["holdout_accuracy"])
    example = images[0][0][:1]
    both = {"two_sided": options.two_sided_images or options.calibration, "rounds": options.rounds} if method in BOTH else {}
    counted, whole = facts(plain, example), facts(bench.model, example)
    return {
        "method": method,
        "model": options.model,
        "speedup": options.speedup,
        "judged_on": f"{sum(len(y) for _, y in images):,} {'test' if options.judge == 'test' else 'held-out training'} images",
        "dense": dense,
        "before": before,
        "last": last,
        "difference": last - dense,
        "best_epoch": {"epoch": best["epoch"], "holdout": best["holdout_accuracy"], "test_bf16": best.get("holdout_test")},
        "macs": counted.macs,
        "dense_macs": whole.macs,
        "params": counted.params,
        "dense_params": whole.params,
        "latency_ms": latencies(bench.model, plain, example, options.repeats),
        "training": {
            key: getattr(options, key)
            for key in ("distil", "epochs", "lr", "weight_decay", "batch", "alpha", "blocks", "images", "teachers")
        },
        "images": {"calibration": options.calibration, "holdout": options.holdout} | both,
        "epochs": epochs,
        "kept": {axis: list(pair) for axis, pair in plan.widths().items()},
        "command": command("channel_tune.py", FOLDER=options.data, OUT=options.out),
        "versions": machine.versions(),
        "hardware": machine.hardware("cpu", torch.get_num_threads()),
        "seed": options.seed,
        "seconds": {
            "cut": round(made, 1),
            "training": round(apart + sum(record["seconds"] for record in epochs), 1),
            "all": round(time.perf_counter() - begun, 1),
            "processor": round(time.process_time() - busy, 1),
        },
    }


def parser() -> argparse.ArgumentParser:
    """What can be asked."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model")
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--methods", default=",".join(METHODS))
    made.add_argument("--speedup", type=float, default=2.11)
    made.add_argument("--distil", type=int, default=0, metavar="STEPS", help="steps without labels before the first epoch")
    made.add_argument("--epochs", type=int, default=5)
    made.add_argument("--images", type=int, help="train on so many images alone")
    made.add_argument("--lr", type=float, default=0.02)
    made.add_argument("--weight-decay", type=float, default=5e-4)
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--alpha", type=float, default=0.5, help="weight of the parent's answers, the rest is that of labels")
    made.add_argument("--blocks", type=float, default=1.0, help="weight of the parent's block outputs; 0 for none")
    made.add_argument("--teachers", default="", help="further networks of the weights' folder, as bench/common.py knows them")
    made.add_argument("--compile", action="store_true", help="train through torch.compile: the same arithmetic, fewer seconds")
    made.add_argument("--calibration", type=int, default=256)
    made.add_argument("--holdout", type=int, default=1000)
    made.add_argument("--test", type=int, default=10000)
    made.add_argument("--two-sided-images", type=int, default=0, help="for what is fitted on both sides; 0: calibration's")
    made.add_argument("--rounds", type=int, default=1, help="of fits of both sides")
    made.add_argument("--judge", choices=("test", "holdout"), default="test")
    made.add_argument("--repeats", type=int, default=50)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--out", type=Path, default=RESULTS)
    return made


def main() -> None:
    """Run the methods that are missing."""
    options = parser().parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    folder = options.out / options.model
    folder.mkdir(parents=True, exist_ok=True)
    bench, train = None, None
    for method in options.methods.split(","):
        path = folder / f"{method.replace(' ', '_')}-{options.seed}.json"
        if path.exists():
            continue
        bench, train = bench or channel.bench_of(options), train or images_of(options)
        checkpoint = path.with_suffix(".unfinished")
        found = row(method, bench, train, options, checkpoint)
        write_json(path, found)
        checkpoint.unlink(missing_ok=True)
        print(method, f"{found['before']:.4f} {found['last']:.4f} {found['difference']:+.4f}", found["seconds"], flush=True)


if __name__ == "__main__":
    main()
