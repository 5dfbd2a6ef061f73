"""Sizes of dense and sparse files of networks, and whether the sparse ones come back bit for bit.

    python bench/file_sizes.py [--data FOLDER] [--keep 0.02] [--out FILE]

Masks are those of the largest weights over all layers. With `--data` the CIFAR-10 networks have their published weights. In
all others every tensor of one dim (batch norms, biases) is noise: constants, as fresh networks have them, would deflate to
nothing and flatter the files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from common import command, network, pretrained, weights_file
from secateur.io.files import write_json
from secateur.io.vision import torchvision
from secateur.measure import machine
from secateur.train.sparse import one_shot

NETWORKS = (
    *("digits_resnet", "cifar_resnet20_a", "cifar_resnet32_a", "cifar_resnet56_a", "vgg19_bn_cifar"),
    *("deit_tiny_patch16_224", "resnet50"),
)


def fresh(name: str) -> nn.Module:
    """A network of the zoo, torchvision or timm with random weights."""
    if name.startswith("deit"):
        torchvision()  # timm imports it
        import timm

        return timm.create_model(name)
    return network(name)


def measure(name: str, keep: float, data: Path | None) -> dict[str, Any]:
    """Bytes of both files of one network."""
    torch.manual_seed(0)
    published = data is not None and (data / weights_file(name)).exists()
    model = pretrained(name, data) if data is not None and published else fresh(name)
    if not published:
        for value in model.state_dict().values():
            if value.dim() == 1 and value.is_floating_point():
                value.copy_(torch.randn(value.shape).abs())
    plan = one_shot(model, keep)
    small = plan.apply(model)
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder) / "dense.safetensors", Path(folder) / "sparse.safetensors"
        secateur.save(dense, model)
        start = time.perf_counter()
        secateur.save(sparse, small, plan)
        saved = time.perf_counter()
        again = secateur.load(sparse, into=fresh(name))
        loaded = time.perf_counter()
        sizes = dense.stat().st_size, sparse.stat().st_size
    pairs = list(zip(small.state_dict().values(), again.state_dict().values(), strict=True))
    exact = all(one.dtype == two.dtype and torch.equal(bits(one), bits(two)) for one, two in pairs)
    entries = sum(support.size for step in plan.steps for support in step.supports)  # type: ignore[union-attr]
    return {
        "network": name, "weights": "published" if published else "random", "keep": keep, "maskable": entries,
        "parameters": sum(p.numel() for p in model.parameters()), "dense_bytes": sizes[0], "sparse_bytes": sizes[1],
        "exact": exact, "save_seconds": round(saved - start, 3), "load_seconds": round(loaded - saved, 3),
    }  # fmt: skip


def bits(value: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return value.detach().reshape(-1).view(torch.uint8)


def main() -> None:
    """Measure all networks and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with weights/ of the CIFAR-10 networks")
    parser.add_argument("--keep", type=float, default=0.02)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start, rows = time.perf_counter(), []
    for name in options.networks:
        rows.append(measure(name, options.keep, options.data))
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        spent = round(time.perf_counter() - start, 1)
        record = {**machine.record(), "command": command("file_sizes.py", FOLDER=options.data), "seed": 0, "seconds": spent}
        write_json(options.out, {**record, "rows": rows})


if __name__ == "__main__":
    main()
