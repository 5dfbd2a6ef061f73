"""Trace, plan and apply on one family from 10 to 2,000 layers: seconds per layer must not grow.

python bench/linear.py --out bench/results/linear.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

LAYERS = (10, 50, 200, 500, 1000, 2000)


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
    """Median seconds of each step."""
    import secateur

    rows = []
    for _ in range(repeats):
        model, x = build(layers)
        model.eval()
        marks = [time.perf_counter()]
        axes = secateur.trace(model, x)
        marks.append(time.perf_counter())
        plan = secateur.allocate.uniform(axes, secateur.score(axes, secateur.criteria.l2(model)), keep=0.5)
        marks.append(time.perf_counter())
        plan.apply(model)
        marks.append(time.perf_counter())
        rows.append([b - a for a, b in pairwise(marks)])
    return dict(zip(("trace", "plan", "apply"), map(statistics.median, zip(*rows, strict=True)), strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, build in (("convolutions", convolutions), ("attentions", attentions)):
        seconds(build, 10, 1)  # imports and caches
        for layers in LAYERS:
            row = seconds(build, layers, options.repeats if layers < 1000 else 1)
            found[f"{name} {layers}"] = {**row, "ms_per_layer": 1000 * sum(row.values()) / layers}
            shown = "  ".join(f"{key} {value:.3f}" for key, value in found[f"{name} {layers}"].items())
            print(f"{name:13s} {layers:5d}  {shown}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"command": "python bench/linear.py", "rows": found}, indent=1))


if __name__ == "__main__":
    main()
