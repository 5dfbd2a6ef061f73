"""What the page of low-rank results says of its rows."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from scripts import module


@pytest.fixture
def script() -> ModuleType:
    return module("docs/make/low_rank.py")


def test_a_row_that_is_not_faster_says_so(script, tmp_path):
    base = {
        "model": "net", "keep": 0.5, "macs": 500, "dense_macs": 1000, "params": 3, "dense_params": 6, "seed": 0,
        "judged_on": "test",
        "epochs": {"all": 0.5, "batches": 10}, "training": {"lr": 0.1, "batch": 2, "precision": "bf16"},
        "latency_ms": {"eager": 2.0, "dense_eager": 1.0, "onnx": 0.5, "dense_onnx": 1.0},
    }  # fmt: skip
    folder, other = tmp_path / "low_rank" / "net", tmp_path / "low_rank_ablation" / "net"
    folder.mkdir(parents=True)
    other.mkdir(parents=True)
    for name, after in (("dense", 0.9), ("trp_decay", 0.8)):
        shorter = {"epochs": {"all": 0.2, "batches": 4}, "method": name, "before": after, "after": after}
        (other / f"{name}.json").write_text(json.dumps(base | shorter))
    rows = {"dense": (0.9, 0.9), "trp_ranks": (0.85, 0.855), "svd": (0.1, 0.84)}
    for name, (before, after) in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(base | {"method": name, "before": before, "after": after}))
    text = script.page(tmp_path)
    assert "2.00 ms (2.00x, not faster) | 0.50 ms (0.50x)" in text
    assert "| 85.00 % | 85.50 % | -4.50 |" in text
    assert "fine-tuning gains +0.50 points; +1.50 points to data-free SVD, channel after it" in text
    main, parts = text.split("### Each part on its own")
    assert "trains on 10 batches" in main
    assert "decoupled" not in main
    assert "trains on 4 batches" in parts
    assert "TRP, decoupled nuclear decay | 0 | 80.00 % | 80.00 % | -10.00" in parts
