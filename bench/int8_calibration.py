"""How ranges for int8 are best found: by the largest values of some training images, or without the outermost ones.

    python bench/int8_calibration.py --data /path/to/data

The published CIFAR ResNet-20 without zeros, all layers by the engine's int8 kernels. Calibrated on 512 training images, judged
on 2,048 others of the training set: accuracy, and the error of the logits relative to float32. Writes
bench/results/int8_calibration.json.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

RESULT = Path(__file__).parent / "results" / "int8_calibration.json"
SHARES = (1.0, 0.99999, 0.9999, 0.999)
"""Of the values, by magnitude on each side, that a range reaches over; 1 is all."""
BATCH, CALIBRATED, JUDGED = 128, 512, 2048


def clipped(graph: Any, batches: Sequence[Any], share: float) -> Mapping[str, tuple[float, float]]:
    """Ranges without the outermost values of each batch; the widest of the batches."""
    import torch

    from secateur.runtime.graph import compute

    found: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        for x in batches:
            values: dict[str, Any] = {**graph.constants, graph.inputs[0]: x}
            for node in graph.nodes:
                values[node.name] = compute(node, [values[name] for name in node.inputs])
            for name, value in values.items():
                flat = value.flatten()
                left = max(round(flat.numel() * (1 - share)), 1)
                low, high = -float((-flat).topk(left).values[-1]), float(flat.topk(left).values[-1])
                before = found.get(name, (0.0, 0.0))
                found[name] = min(before[0], low), max(before[1], high)
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="the folder with cifar10 and weights")
    given = parser.parse_args()

    import torch
    from safetensors.torch import load_file

    from secateur import data, runtime
    from secateur.io import write_json
    from secateur.measure import machine
    from secateur.recipes import zoo
    from secateur.runtime import plan
    from secateur.runtime.compiled import CompiledModel

    model = zoo.build("cifar_resnet20_a").eval()
    model.load_state_dict(load_file(given.data / "weights" / "cifar10_resnet20_a.safetensors"))
    torch.manual_seed(0)
    settings = data.BatchSettings(batch=BATCH, holdout=0, augment=False)
    train = iter(data.loaders(data.cifar10(given.data).normalised("imagenet"), settings).train)
    seen = [next(train)[0] for _ in range(CALIBRATED // BATCH)]
    judged = [next(train) for _ in range(JUDGED // BATCH)]
    labels = torch.cat([y for _, y in judged])

    def logits(net: Any) -> Any:
        with torch.inference_mode():
            return torch.cat([net(x) for x, _ in judged])

    exact = logits(model)
    graph = runtime.prepare(model, seen[0]).graph
    rows = []
    # every layer in int8, whatever is faster: nothing of this network is zero
    with mock.patch.multiple(plan, forms_of=lambda size: (size,), _better_dense=lambda *_: {}, dense_floor=lambda *_: 1e18):
        for share in SHARES:
            fast = CompiledModel(graph, 1, "int8", clipped(graph, seen, share))
            found = logits(fast)
            assert {row["values"] for row in fast.choices(judged[0][0])} == {"int8"}
            rows.append({
                "share": share, "accuracy": float((found.argmax(1) == labels).float().mean()),
                "relative_error": float((found - exact).norm() / exact.norm()),
            })  # fmt: skip
            print(rows[-1], flush=True)
    write_json(RESULT, {
        **machine.record(), "command": "python bench/int8_calibration.py --data DATA", "network": "cifar_resnet20_a", "seed": 0,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "calibrated_on": CALIBRATED,
        "judged_on": JUDGED, "set": "training images", "accuracy_float32": float((exact.argmax(1) == labels).float().mean()),
        "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
