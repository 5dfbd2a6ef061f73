"""Write docs/results/file_sizes.md from the result of bench/file_sizes.py.

python docs/make/file_sizes.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "bench" / "results" / "file_sizes.json"
PAGE = ROOT / "docs" / "results" / "file_sizes.md"
HEAD = """# Files of sparse models

Written by `python docs/make/file_sizes.py` from [the result](../../bench/results/file_sizes.json); by hand nothing.

`secateur.save` of a network whose largest weights stay ({keep:.0%} of all weights of convolutions and linear layers, spread
over layers as magnitudes have it), beside the file of the dense network. Published: weights as their authors trained them.
Random: fresh ones, with noise in batch norms and biases, which deflates least. Same bits: every tensor came back as it
was saved, dtype, shape and bits.

| network | weights | parameters | dense file (bytes) | sparse file (bytes) | ratio | same bits |
|---|---|--:|--:|--:|--:|---|
"""


def runs() -> dict[str, Any]:
    """The result file."""
    return json.loads(RESULT.read_text())


def page(found: dict[str, Any]) -> str:
    """The page of that result."""
    lines = []
    for row in found["rows"]:
        sizes = f"{row['parameters']:,} | {row['dense_bytes']:,} | {row['sparse_bytes']:,}"
        ratio, exact = row["dense_bytes"] / row["sparse_bytes"], "yes" if row["exact"] else "NO"
        lines.append(f"| {row['network']} | {row['weights']} | {sizes} | {ratio:.1f} | {exact} |\n")
    where = f"{found['hardware']['cpu']}, torch {found['versions']['torch']}, seed {found['seed']}"
    return HEAD.format(keep=found["rows"][0]["keep"]) + "".join(lines) + f"\n`{found['command']}` on {where}.\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(runs()))


if __name__ == "__main__":
    main()
