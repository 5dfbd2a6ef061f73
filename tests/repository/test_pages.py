"""Every page of results is what its maker writes from the run files that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import ROOT, module

MAKERS = sorted(path for path in (ROOT / "docs" / "make").glob("*.py") if path.stem != "readme")


@pytest.mark.parametrize("maker", MAKERS, ids=lambda path: path.stem)
def test_the_page_is_up_to_date(maker: Path) -> None:
    written = ROOT / "docs" / "results" / f"{maker.stem}.md"
    if not written.exists():
        pytest.skip("no page yet")
    made = module(str(maker.relative_to(ROOT)))
    assert written.read_text() == made.page(made.runs()), f"python docs/make/{maker.name} writes another page"


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda path: path.stem)
def test_every_page_has_a_maker_and_is_linked_to(path: Path) -> None:
    assert path.stem in [maker.stem for maker in MAKERS]
    texts = [file.read_text() for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    assert any(f"results/{path.name}" in text for text in texts)


CHANNEL = {
    "model": "cifar_resnet20_a", "command": "python bench/channel.py", "seconds": 60.0,
    "images": {"calibration": 256, "holdout": 512, "test": 2000},
    "dense": {"macs": 1000, "params": 100, "holdout": 0.99, "test": 0.9},
}  # fmt: skip


def test_the_page_of_channel_pruning_marks_the_best_held_out_row_and_says_what_distillation_took() -> None:
    def row(criterion: str, repair: str, holdout: float, test: float, **more: object) -> dict:
        known = {"criterion": criterion, "repair": repair, "speedup": 2.1, "macs": 470, "params": 50}
        return known | {"holdout": holdout, "test": test, "seconds": {"select": 1.0, "repair": 120.0}} | more

    rows = [
        row("l1", "least_squares+batchnorm", 0.7, 0.8), row("tp l1", "least_squares+batchnorm", 0.6, 0.75),
        row("fpgm", "batchnorm", 0.9, 0.6), row("l1", "distil", 0.8, 0.85, after="batchnorm", steps=7, images=512),
        row("l1", "two_sided", 0.85, 0.84, images=512, test_all=0.83),
        row("both", "two_sided", 0.84, 0.83, images=64, rounds=2, test_all=0.8, seconds={"select": 65.0, "repair": 0.01}),
    ]  # fmt: skip
    dense = CHANNEL["dense"] | {"test_all": 0.88}  # type: ignore[operator]
    text = module("docs/make/channel.py").page({"cifar_resnet20_a": CHANNEL | {"rows": rows, "dense": dense}})
    assert "On all 10,000 test images 83.00 %, dense 88.00 % (-5.00)." in text
    assert "in 2 rounds, before the next is selected, on 64 training images without labels, no gradient step, 65 s" in text
    assert "**60.00 (-30.00)**" in text
    assert text.count("**60") == text.count("**") / 2
    assert "l1 +5.00" in text
    assert "7 steps towards the original's outputs on 512 training images without labels, 2 minutes" in text
