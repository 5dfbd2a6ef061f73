"""Prints how much faster the sparse engine is than the fastest dense runtime on this machine, and writes it to a file.

    python bench/sparse_engine.py [PART ...] [--again] [--rounds 15]      measure; parts done before are kept
    python bench/sparse_engine.py --list                                  the parts
    python docs/make/sparse_engine.py                                     docs/results/sparse_engine.md from the results

A part is NETWORK-bBATCH-tTHREADS, one process and one file in bench/results/sparse_engine/, below ten minutes. Dense rivals,
all float32: PyTorch eager (both memory formats), torch.compile with frozen weights, ONNX Runtime, and OpenVINO where it
is importable. All candidates run in turns; each turn's time is the mean of enough runs to last 30 ms, after one run that warms
the caches; medians of the turns count. One thread is CPU time, more are wall time. Weights are random, zeros uniform per
layer (every convolution and linear layer alike), or of the smallest magnitudes of the whole network ("global").
Dense bf16 (PyTorch) and int8 (ONNX Runtime) stand beside, because they are free of zeros' cost in accuracy questions of
another kind; they are no part of the ratio. So does the engine with values of bf16 and of int8 (ranges from the input itself),
which are to be compared with dense bf16 and int8.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from secateur.measure.turns import Run, in_turns
from secateur.runtime.rivals import LOWER_PRECISION, Dense, rivals

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "sparse_engine"
NETWORKS = {"resnet50": (3, 224, 224), "vgg19": (3, 32, 32), "resnet20": (3, 32, 32)}
OTHERS = {"resnet18": (3, 224, 224), "mobilenet_v2": (3, 224, 224), "densenet121": (3, 224, 224), "deit_tiny": (3, 224, 224),
          "bert": (128, 768)}  # fmt: skip
"""Networks that no goal is set for, at batch 1 on one thread, in float32 and bf16."""
SHAPES = NETWORKS | OTHERS
PARTS = [f"{net}-b{batch}-t{threads}" for net in NETWORKS for threads in (1, 2) for batch in (1, 16)]
PARTS += [f"{net}-b1-t1" for net in OTHERS]
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
CURVE = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
"""Sparsities of the curve, measured for ResNet-50 at batch 1 on one thread: part "curve"."""
CONTROL = "control"
"""A second instance of the fastest dense runtime: its ratio to the first is what turns of the same work differ by."""
SEED = 0


def build(network: str, sparsity: float, spread: str = "uniform") -> Any:
    """The network in evaluation, random weights of a fixed seed, with that share of zeros in its layers but depthwise ones."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    model = made(network)
    for module in model.modules():  # statistics as after some training: folding them must change the weights
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = [m.weight.data for m in layers if getattr(m, "groups", 1) == 1]
    if spread == "global":
        bound = (
            torch.cat([w.abs().flatten() for w in weights])
            .kthvalue(max(int(sparsity * sum(map(torch.numel, weights))), 1))
            .values
        )
        for weight in weights:
            weight[weight.abs() <= bound] = 0
    else:
        for weight in weights:
            weight.view(-1)[torch.randperm(weight.numel())[: round(sparsity * weight.numel())]] = 0
    return model.eval()


def made(network: str) -> Any:
    """The network as its library makes it."""
    from secateur.io.vision import torchvision
    from secateur.recipes import zoo

    if network == "vgg19":
        return vgg19()
    if network == "resnet20":
        return zoo.build("cifar_resnet20_a")
    torchvision()
    if network == "bert":
        return bert()
    if network == "deit_tiny":
        import timm

        return timm.create_model("deit_tiny_patch16_224")
    from torchvision import models

    return getattr(models, network)()


def bert() -> Any:
    """Two layers of the size of BERT-base, which read embeddings."""
    from torch import nn
    from transformers import BertConfig, BertModel

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(num_hidden_layers=2), add_pooling_layer=False)

        def forward(self, x: Any) -> Any:
            return self.bert(inputs_embeds=x).last_hidden_state

    return Layers()


def vgg19() -> Any:
    """VGG-19 with batch norm for CIFAR, one linear layer behind the convolutions, as pruning papers have it."""
    from torch import nn

    layers: list[Any] = []
    inputs = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def engines(network: str, x: Any, threads: int, wanted: list[tuple[float, str]]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Compiled models by name, with how far their outputs are from PyTorch's and what was chosen."""
    import torch

    from secateur import runtime

    runs: dict[str, Run] = {}
    about: dict[str, Any] = {}
    for sparsity, spread in wanted:
        model = build(network, sparsity, spread)
        for precision, word in (("float32", "engine"), ("bf16", "engine bf16"), ("int8", "engine int8")):
            if (precision != "float32" and spread != "uniform") or (precision == "int8" and network in OTHERS):
                continue
            name = f"{word} {sparsity:g}" + ("" if spread == "uniform" else f" {spread}")
            with torch.inference_mode():
                expected = model(x)
                fast = runtime.compile(model, x, threads=threads, precision=precision)
                error = float((fast(x) - expected).abs().max() / expected.abs().max())
            plan = fast.plan(x)
            about[name] = {
                "sparsity": sparsity, "spread": spread, "precision": precision, "relative_error": error, "parts": plan.parts,
                "threads_in_a_part": plan.inner, "whole_in": plan.runtime, "layers": layers(fast, x),
            }  # fmt: skip
            runs[name] = lambda fast=fast: fast(x)
    return runs, about


def layers(fast: Any, x: Any) -> list[dict[str, Any]]:
    """Per layer: non-zero multiply-adds and bytes, the time both take at least on this machine, and the share reached."""
    from secateur.runtime import roofline

    return roofline.table(fast, x)


@contextmanager
def one_clock(threads: int) -> Iterator[Callable[[], float]]:
    """CPU time where one thread works, wall time where several do."""
    import torch

    torch.set_num_threads(threads)
    yield time.process_time if threads == 1 else time.perf_counter


def measure(part: str, rounds: int, command: str) -> dict[str, Any]:
    """The record of one part."""
    import torch

    curve = part == "curve"
    network, batch, threads = (
        ("resnet50", 1, 1) if curve else (part.split("-")[0], *(int(word[1:]) for word in part.split("-")[1:]))
    )
    wanted = [(s, "uniform") for s in (CURVE if curve else SPARSITIES)]
    if not curve and network in NETWORKS:
        wanted += [(s, "global") for s in SPARSITIES]
    torch.manual_seed(SEED)
    shape = SHAPES[network]
    x = torch.randn(batch, *shape)
    load = os.getloadavg()[0]
    with one_clock(threads) as clock, TemporaryDirectory() as folder:
        given = Dense(build(network, 0.0), (x,), threads, Path(folder))
        runs, absent = rivals(given)
        first = fastest(in_turns(runs, 3, clock))
        second = rivals(given, [first])[0][first]
        fast, about = engines(network, x, threads, wanted)
        times = in_turns(runs | fast | {CONTROL: second}, rounds, clock)
    dense = {name: median(taken) for name, taken in times.items() if name in runs and name not in LOWER_PRECISION}
    best = fastest({name: times[name] for name in runs})
    rows = {name: known | {"ms": median(times[name])} | over(times[best], times[name]) for name, known in about.items()}
    for precision, rival in (("bf16", "PyTorch bf16"), ("int8", "ONNX Runtime int8")):
        for name, row in rows.items():
            if rival in times and row["precision"] == precision:
                row[f"over_dense_{precision}"] = median(a / b for a, b in zip(times[rival], times[name], strict=True))
    size = shape[-1] if shape[0] == 3 else "x".join(map(str, shape))
    return {
        "part": part, "network": network, "batch": batch, "threads": threads, "size": size, "rounds": rounds,
        "clock": "CPU" if threads == 1 else "wall", "command": command, "seed": SEED, "machine": machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "load": [load, os.getloadavg()[0]],
        "best_dense": best, "dense_ms": dense, "control": {"rival": first} | over(times[first], times[CONTROL]),
        "lower_precision_ms": {name: median(times[name]) for name in LOWER_PRECISION if name in times},
        "absent": absent, "engine": rows, "all_ms": {name: [round(t, 4) for t in taken] for name, taken in times.items()},
    }  # fmt: skip


def fastest(times: dict[str, list[float]]) -> str:
    """The dense float32 runtime whose median is lowest."""
    return min((name for name in times if name not in LOWER_PRECISION), key=lambda name: median(times[name]))


def over(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster, turn by turn: the median, the least and the largest."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"speedup": median(ratios), "speedup_low": min(ratios), "speedup_high": max(ratios)}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    from secateur.native import library
    from secateur.runtime.tune import _machine

    lib = library.library()
    found: dict[str, Any] = {
        "cpu": _machine(), "cores": os.cpu_count(), "instruction_set": library.path(), "python": platform.python_version(),
        "torch": torch.__version__, "gmacs_per_second": {str(n): lib.secateur_peak(n) / 1e9 for n in (1, 2)},
        "gbytes_per_second": {str(kib): lib.secateur_bandwidth(kib << 10) / 1e9 for kib in (16, 256, 4096, 131072)},
    }  # fmt: skip
    for name in ("onnxruntime", "openvino"):
        try:
            found[name] = __import__(name).__version__.split("-")[0]
        except ImportError:
            found[name] = None
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found["commit"] = commit.stdout.strip() or None
    return found


def main() -> None:
    """Measure the parts asked for, each in a process of its own, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="none: all")
    parser.add_argument("--again", action="store_true", help="measure parts that have results")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--list", action="store_true", help="print the parts and which are done")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = [*PARTS, "curve"]
    if unknown := [part for part in options.parts if part not in known]:
        parser.error(f"no part {unknown[0]}; parts: {', '.join(known)}")
    if options.list:
        for part in known:
            print(part, "done" if (RESULTS / f"{part}.json").exists() else "")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in options.parts or known:
        target = RESULTS / f"{part}.json"
        if target.exists() and not options.again:
            continue
        if options.here:
            from secateur.io import write_json

            record = measure(part, options.rounds, f"python bench/sparse_engine.py {part} --rounds {options.rounds}")
            write_json(target, record)
            speeds = {name: round(row["speedup"], 2) for name, row in record["engine"].items()}
            print(part, record["best_dense"], round(record["dense_ms"][record["best_dense"]], 3), speeds, flush=True)
        else:
            again = ["--again"] if options.again else []
            environment = os.environ | {"OMP_NUM_THREADS": part[-1] if part != "curve" else "1"}
            words = [sys.executable, __file__, part, "--here", "--rounds", str(options.rounds), *again]
            if code := subprocess.run(words, env=environment).returncode:
                print(f"{part} ended with {code}", flush=True)


if __name__ == "__main__":
    main()
