"""What the page of sparse training says, and that the experiments run."""

from __future__ import annotations

import json

import pytest

from scripts import module


def row(method: str, seed: int, accuracy: float, keep: float = 0.02) -> dict:
    return {
        "model": "resnet20", "method": method, "keep": keep, "seed": seed, "accuracy": accuracy, "mean_rank": 20.0 + seed,
        "mean_energy_rank": 9.5, "empty_rows": 7, "empty_columns": 5, "steps": 400, "batch": 64, "lr": 0.05,
        "precision": "bf16", "seconds": 70.0, "hardware": {"cpu": "a CPU", "threads": 1}, "versions": {"torch": "2.13.0"},
    }  # fmt: skip


def test_the_page_says_means_ranges_and_differences():
    text = module("docs/make/sparse.py").page([row("dense", 0, 0.91, 1.0), row("gmp", 0, 0.80), row("gmp", 1, 0.82)])
    assert "| GMP | 2 | 81.00 (80.00 to 82.00) | -10.00 | 20.5 | 9.5 | 7 | 5 |" in text
    assert "ResNet-20 91.00 %" in text
    assert "98 % of the weights gone" in text


def test_the_page_sets_methods_beside_gmp_and_schedules_beside_each_other():
    found = [row("gmp", 0, 0.80), row("rpg_b", 0, 0.79), row("gmp", 1, 0.82), row("rpg_b", 1, 0.83)]
    found += [{**row("gmp", 0, 0.62), "steps": 200, "short": True}, {**row("rpg_b", 0, 0.54), "steps": 200, "short": True}]
    text = module("docs/make/sparse.py").page(found)
    assert "* RPG B, published lambda less GMP: +0.00 points of accuracy, +0.0 of rank." in text
    assert "| method | 200 steps | to GMP | 400 steps | to GMP |" in text
    assert "| RPG B, published lambda | 54.00 | -8.00 | 79.00 | -1.00 |" in text


def test_the_experiment_runs_and_does_not_repeat_itself(tmp_path, monkeypatch):
    bench = module("bench/sparse_training.py")
    from secateur.recipes import zoo

    monkeypatch.setattr(bench, "digits_network", lambda: zoo.digits_resnet(widths=(4, 4, 8)))
    words = [
        "--model",
        "digits",
        "--methods",
        "rpg_a,gmp",
        "--keep",
        "0.05",
        "--steps",
        "12",
        "--every",
        "2",
        "--out",
        str(tmp_path),
    ]
    bench.call([*words, "--precision", "float32"])
    files = sorted(tmp_path.glob("*.json"))
    assert [path.stem for path in files] == ["digits_gmp_0.05_0", "digits_rpg_a_0.05_0"]
    found = json.loads(files[0].read_text())
    assert found["density"] == pytest.approx(0.05, abs=1e-2)
    before = [path.stat().st_mtime_ns for path in files]
    bench.call([*words, "--precision", "float32"])
    assert [path.stat().st_mtime_ns for path in files] == before


def test_the_overhead_is_measured(monkeypatch, capsys):
    bench = module("bench/rank_overhead.py")
    words = ["x", "--model", "cifar_resnet20_a", "--batch", "2", "--size", "8", "--rounds", "1", "--references", "1"]
    monkeypatch.setattr("sys.argv", words)
    bench.main()
    assert json.loads(capsys.readouterr().out)["share_in_growth"] > 0
