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
another kind; they are no part of the ratio.
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
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "sparse_engine"
NETWORKS = {"resnet50": 224, "vgg19": 32, "resnet20": 32}
PARTS = [f"{net}-b{batch}-t{threads}" for net in NETWORKS for threads in (1, 2) for batch in (1, 16)]
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
CURVE = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
"""Sparsities of the curve, measured for ResNet-50 at batch 1 on one thread: part "curve"."""
SEED = 0
LEAST_SECONDS = 0.03


def build(network: str, sparsity: float, spread: str = "uniform") -> Any:
    """The network in evaluation, random weights of a fixed seed, with that share of zeros in its layers."""
    import torch
    from torch import nn

    from secateur.recipes import zoo

    torch.manual_seed(SEED)
    if network == "resnet50":
        from secateur.io.vision import torchvision

        torchvision()
        from torchvision.models import resnet50

        model = resnet50()
    elif network == "vgg19":
        model = vgg19()
    else:
        model = zoo.build("cifar_resnet20_a")
    for module in model.modules():  # statistics as after some training: folding them must change the weights
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
    weights = [m.weight.data for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
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


Run = Callable[[], Any]


@dataclass(frozen=True)
class Dense:
    """What a dense rival is given: the network's name, inputs, threads, and a folder for exported files."""

    network: str
    x: Any
    threads: int
    folder: Path

    def model(self) -> Any:
        """The network without zeros."""
        return build(self.network, 0.0)

    @property
    def onnx(self) -> Path:
        """The exported network, once `_export` has run."""
        return self.folder / "model.onnx"


def dense_runs(network: str, x: Any, threads: int, folder: Path) -> tuple[dict[str, Run], dict[str, str]]:
    """Dense rivals by name, and why the missing ones are missing."""
    given = Dense(network, x, threads, folder)
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    for name, make in RIVALS.items():
        try:
            runs[name] = make(given)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    runs.pop("export", None)
    return runs, absent


def _eager(given: Dense) -> Run:
    model = given.model()
    return lambda: model(given.x)


def _channels_last(given: Dense) -> Run:
    import torch

    model = given.model().to(memory_format=torch.channels_last)
    x = given.x.contiguous(memory_format=torch.channels_last)
    return lambda: model(x)


def _export(given: Dense) -> Run:
    """Writes the file that the other runtimes read; nothing to run."""
    import torch

    torch.onnx.export(
        given.model(), (given.x,), str(given.onnx), dynamo=True, verbose=False, dynamic_shapes=None, external_data=False
    )
    return lambda: None


def _compiled(given: Dense) -> Run:
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True
    inductor.compile_threads = 1
    fast = torch.compile(given.model())
    fast(given.x)
    return lambda: fast(given.x)


def _onnx_runtime(given: Dense, path: Path | None = None) -> Run:
    session = _session(str(path or given.onnx), given.threads)
    named = {session.get_inputs()[0].name: given.x.numpy()}
    session.run(None, named)
    return lambda: session.run(None, named)


def _onnx_int8(given: Dense) -> Run:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            name = _session(str(given.onnx), 1).get_inputs()[0].name
            self.left: Iterator[Any] = iter([{name: given.x[:1].numpy()}])

        def get_next(self) -> Any:
            return next(self.left, None)

    thin = given.folder / "int8.onnx"
    quantization.quantize_static(
        str(given.onnx), str(thin), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
    )
    return _onnx_runtime(given, thin)


def _openvino(given: Dense) -> Run:
    import openvino as ov

    core = ov.Core()
    options = {"INFERENCE_NUM_THREADS": given.threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    fast = core.compile_model(core.read_model(str(given.onnx)), "CPU", options)
    request, x = fast.create_infer_request(), given.x.numpy()
    request.infer([x])
    return lambda: request.infer([x])


def _bfloat16(given: Dense) -> Run:
    import torch

    model = given.model().to(memory_format=torch.channels_last).bfloat16()
    x = given.x.contiguous(memory_format=torch.channels_last).bfloat16()
    model(x)
    return lambda: model(x)


RIVALS: dict[str, Callable[[Dense], Run]] = {
    "PyTorch eager": _eager,
    "PyTorch eager, channels_last": _channels_last,
    "export": _export,
    "torch.compile": _compiled,
    "ONNX Runtime": _onnx_runtime,
    "OpenVINO": _openvino,
    "PyTorch bf16": _bfloat16,
    "ONNX Runtime int8": _onnx_int8,
}


def _session(path: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


LOWER_PRECISION = ("PyTorch bf16", "ONNX Runtime int8")


def in_turns(runs: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of each candidate in each round."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats: dict[str, int] = {}
    with torch.inference_mode():
        for name, run in runs.items():
            run()
            begin = time.perf_counter()
            run()
            repeats[name] = max(1, round(LEAST_SECONDS / max(time.perf_counter() - begin, 1e-6)))
        names = list(runs)
        for turn in range(rounds):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                runs[name]()
                begin = clock()
                for _ in range(repeats[name]):
                    runs[name]()
                times[name].append((clock() - begin) * 1000 / repeats[name])
    return times


def engines(network: str, x: Any, threads: int, wanted: list[tuple[float, str]]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Compiled models by name, with how far their outputs are from PyTorch's and what was chosen."""
    import torch

    from secateur import runtime

    runs: dict[str, Run] = {}
    about: dict[str, Any] = {}
    for sparsity, spread in wanted:
        name = f"engine {sparsity:g}" + ("" if spread == "uniform" else f" {spread}")
        model = build(network, sparsity, spread)
        with torch.inference_mode():
            expected = model(x)
            fast = runtime.compile(model, x, threads=threads)
            error = float((fast(x) - expected).abs().max() / expected.abs().max())
        plan = fast.plan(x)
        about[name] = {
            "sparsity": sparsity, "spread": spread, "relative_error": error, "parts": plan.parts,
            "threads_in_a_part": plan.inner, "layers": layers(fast, x),
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
    if not curve:
        wanted += [(s, "global") for s in SPARSITIES]
    torch.manual_seed(SEED)
    x = torch.randn(batch, 3, NETWORKS[network], NETWORKS[network])
    load = os.getloadavg()[0]
    with one_clock(threads) as clock, TemporaryDirectory() as folder:
        runs, absent = dense_runs(network, x, threads, Path(folder))
        fast, about = engines(network, x, threads, wanted)
        times = in_turns(runs | fast, rounds, clock)
    rivals = {name: median(taken) for name, taken in times.items() if name in runs and name not in LOWER_PRECISION}
    best = min(rivals, key=lambda name: rivals[name])
    rows = {}
    for name, known in about.items():
        ratios = [a / b for a, b in zip(times[best], times[name], strict=True)]
        rows[name] = known | {
            "ms": median(times[name]),
            "speedup": median(ratios),
            "speedup_low": min(ratios),
            "speedup_high": max(ratios),
        }
    return {
        "part": part, "network": network, "batch": batch, "threads": threads, "size": NETWORKS[network], "rounds": rounds,
        "clock": "CPU" if threads == 1 else "wall", "command": command, "seed": SEED, "machine": machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "load": [load, os.getloadavg()[0]],
        "best_dense": best, "dense_ms": rivals,
        "lower_precision_ms": {name: median(times[name]) for name in LOWER_PRECISION if name in times},
        "absent": absent, "engine": rows, "all_ms": {name: [round(t, 4) for t in taken] for name, taken in times.items()},
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    from secateur.runtime import library
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
