"""Trace, plan and apply on one family from 10 to 2,000 layers: seconds per layer must not grow.

python bench/linear.py --out bench/results/linear.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import resident
from secateur.io import write_json

LAYERS = (10, 50, 200, 500, 1000, 2000)
WEIGHED = ("resnet50", "vgg16_bn", "vit_b_16", "convnext_base", "wide_resnet101_2")
LLAMA = "LLaMA of 7 billion parameters, on meta"


class Residual(nn.Module):
    """Two convolutions beside a shortcut; three of them share one width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.body(x)


class Attention(nn.Module):
    """Attention that reads its sizes from an attribute and from the stream, so that verification has work to do."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to the same shape."""
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c))


def convolutions(layers: int) -> tuple[nn.Module, torch.Tensor]:
    """A chain of residual blocks, two convolutions each."""
    blocks = [Residual(8) for _ in range(layers // 2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.Flatten(), nn.Linear(8 * 36, 4)), torch.zeros(1, 3, 8, 8)


def attentions(layers: int) -> tuple[nn.Module, torch.Tensor]:
    """A chain of attention blocks, two linear layers each."""
    return nn.Sequential(*[Attention(16) for _ in range(layers // 2)], nn.Linear(16, 4)), torch.zeros(1, 5, 16)


def seconds(build: Callable[[int], tuple[nn.Module, torch.Tensor]], layers: int, repeats: int) -> dict[str, float]:
    """Median seconds of the processor for each step."""
    import secateur

    rows = []
    for _ in range(repeats):
        model, x = build(layers)
        model.eval()
        marks = [time.process_time()]
        axes = secateur.trace(model, x)
        marks.append(time.process_time())
        plan = secateur.allocate.uniform(axes, secateur.score(axes, secateur.criteria.l2(model)), keep=0.5)
        marks.append(time.process_time())
        plan.apply(model)
        marks.append(time.process_time())
        rows.append([b - a for a, b in pairwise(marks)])
    return dict(zip(("trace", "plan", "apply"), map(statistics.median, zip(*rows, strict=True)), strict=True))


def weigh(name: str) -> dict[str, float]:
    """Memory and seconds of one trace and one plan, in this process."""
    import secateur
    from secateur.io.vision import torchvision
    from secateur.testing import random_plan

    torch.set_num_threads(1)
    example: Any
    if name == LLAMA:
        torchvision()
        import transformers

        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig()).eval()
        example = {"input_ids": torch.zeros(1, 64, dtype=torch.long), "use_cache": False}
    else:
        model, example = torchvision().models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 224, 224)
    small, x = attentions(4)
    secateur.trace(small, x)
    secateur.trace(*convolutions(4))
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = resident("VmRSS"), time.process_time()
    axes = secateur.trace(model, example)
    traced, peak = time.process_time() - start, resident("VmHWM")
    plan = random_plan(axes)
    kept = {axis: after for axis, (_, after) in plan.widths().items()}
    row = {"model_bytes": size, "trace_bytes": peak - before, "share": (peak - before) / size, "trace_seconds": traced}
    row["trace_and_plan_seconds"] = time.process_time() - start
    row["trace_and_plan_bytes"] = resident("VmHWM") - before
    return {**row, "params": axes.count("params"), "params_planned": axes.count("params", kept)}


def weighed(name: str) -> dict[str, float]:
    """`weigh` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(weigh, (name,))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, build in (("convolutions", convolutions), ("attentions", attentions)):
        seconds(build, 10, 1)  # imports and caches
        for layers in options.layers:
            row = seconds(build, layers, options.repeats if layers < 1000 else 1)
            rows[f"{name} {layers}"] = {**row, "ms_per_layer": 1000 * sum(row.values()) / layers}
            shown = "  ".join(f"{key} {value:.3f}" for key, value in rows[f"{name} {layers}"].items())
            print(f"{name:13s} {layers:5d}  {shown}", flush=True)
    memory = {}
    for name in (*WEIGHED, LLAMA):
        memory[name] = weighed(name)
        print(name, "  ".join(f"{key} {value:.3g}" for key, value in memory[name].items()), flush=True)
    if options.out:
        setting = {"python": platform.python_version(), "torch": torch.__version__}
        setting["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, 1 used"
        found = {"command": "python bench/linear.py", "setting": setting, "rows": rows, "memory": memory}
        write_json(options.out, found)


if __name__ == "__main__":
    main()
