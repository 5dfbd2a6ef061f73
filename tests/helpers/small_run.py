"""A run small enough for tests: 320 digits, a residual network of a few channels, three epochs before and after."""

from __future__ import annotations

from pathlib import Path

DATA = """
import torch
from secateur.data import DataSet, digits

def small(classes=10, wrong_test=False):
    whole = digits()
    x, y = whole.train[0][:320], whole.train[1][:320]
    labels = (whole.test[1] + 1) % 10 if wrong_test else whole.test[1]
    return DataSet("small", (x, y), (whole.test[0], labels), whole.classes, whole.mean, whole.std, whole.augment)

def pair():
    torch.manual_seed(0)
    train = [(torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))) for _ in range(4)]
    return train, train[:2]

def negative_loss(model, batches):
    total = 0.0
    for x, y in batches:
        total -= torch.nn.functional.cross_entropy(model(x), y).item()
    return total
"""

RECIPE = """
title = "small"
threads = 1
seed = 3

[model]
build = "zoo:digits_resnet"
args = { widths = [4, 8, 8] }

[data]
name = "data.py:small"
batch = 32
holdout = 40

[train]
epochs = 3
lr = 0.1

[prune]
keep = { macs = 0.5 }
batches = 3

[repair]
batches = 4

[finetune]
epochs = 3
lr = 0.05

[measure]
repeats = 2
warmup = 1
"""


def write(folder: Path) -> Path:
    """The recipe's path; its data function lies beside it."""
    (folder / "data.py").write_text(DATA)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"
