"""Files of compiled models: they bring the model back, run no code, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine_networks import (
    network,
    same,
    spoiled,
    thin,
)
from secateur import runtime
from secateur.core.errors import SecateurError
from secateur.runtime import file
from secateur.runtime.operations import SAFE, allowed

pytestmark = pytest.mark.usefixtures("few_kernels")


@pytest.mark.parametrize("name", ["plain", "attention", "several", "option A", "transposed"])
def test_files_bring_the_model_back(name: str, tmp_path: Path) -> None:
    model, inputs = network(name)
    fast = runtime.prepare(model, inputs)
    runtime.save(tmp_path / "m.engine", fast, inputs)
    again, example = file.read(tmp_path / "m.engine")
    assert [x.shape for x in example] == [x.shape for x in inputs]
    assert file.is_engine_file(tmp_path / "m.engine")
    with torch.no_grad():
        same(again(*inputs), model(*inputs))


def test_a_sparse_file_is_small(tmp_path: Path) -> None:
    model = thin(nn.Sequential(nn.Conv2d(64, 256, 3)), 0.98)
    runtime.save(tmp_path / "m.engine", runtime.prepare(model, x := torch.randn(1, 64, 5, 5)), (x,))
    weight = 256 * 64 * 9
    assert (tmp_path / "m.engine").stat().st_size < weight * 4 * 0.02 * 1.2 + 256 * 4 + 3000


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    model, inputs = network("plain")
    path = tmp_path / "m.engine"
    runtime.save(path, runtime.prepare(model, inputs), inputs)
    data = path.read_bytes()
    for place in range(9, len(data), max(len(data) // 40, 1)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(SecateurError, match="loading"):
            runtime.load(path)
    for length in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(SecateurError, match="loading"):
            runtime.load(path)


def first(table: dict[str, Any], op: str) -> dict[str, Any]:
    return next(node for node in table["nodes"] if node["op"] == op)


SPOILS: dict[str, Any] = {
    "another precision": lambda t: t.update(precision="bf15"),
    "a precision that is no word": lambda t: t.update(precision=["bf16"]),
    "another version": lambda t: t.update(version=2),
    "no nodes": lambda t: t.pop("nodes"),
    "an operation of its own": lambda t: first(t, "conv").update(op="exec"),
    "a Python function": lambda t: first(t, "torch")["settings"].update(target="os.system"),
    "an operation with effects": lambda t: first(t, "torch")["settings"].update(target="aten.from_file.default"),
    "a value that is not there": lambda t: first(t, "linear").update(inputs=["nothing"]),
    "another shape": lambda t: first(t, "conv")["tensors"].update(weight=[1, 3, 3, 3]),
    "a huge shape": lambda t: first(t, "conv")["tensors"].update(weight=[2**30, 2**30]),
    "a negative padding": lambda t: first(t, "conv")["settings"].update(padding=[-1, 1]),
    "a stride of zero": lambda t: first(t, "conv")["settings"].update(stride=[0, 1]),
    "groups that do not divide": lambda t: first(t, "conv")["settings"].update(groups=7),
    "an activation of its own": lambda t: first(t, "conv")["settings"].update(activation="__class__"),
    "no output": lambda t: t.update(output={"list": []}),
    "an example that does not fit": lambda t: t.update(example=[[[1, 2, 3], "float32"]] * 2),
    "a dtype that is none": lambda t: t.update(example=[[[1, 3, 9, 9], "save"]] * 2),
    "a name twice": lambda t: t["nodes"].append(dict(t["nodes"][-1])),
}


@pytest.mark.parametrize("what", SPOILS)
def test_a_file_with_something_else_in_it_is_refused(what: str, tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(x)).amax((2, 3)))

    path = tmp_path / "m.engine"
    x = torch.randn(1, 3, 9, 9)
    runtime.save(path, runtime.prepare(thin(Two()), x), (x,))
    runtime.load(path)
    path.write_bytes(spoiled(path.read_bytes(), SPOILS[what]))
    with pytest.raises(SecateurError, match="loading"):
        runtime.load(path)


def test_a_saved_model_is_no_engine_file(tmp_path: Path) -> None:
    import secateur

    secateur.save(tmp_path / "m.safetensors", nn.Linear(3, 3))
    with pytest.raises(SecateurError, match="without an engine's graph"):
        runtime.load(tmp_path / "m.safetensors")


def test_operations_a_file_may_name_have_no_effects() -> None:
    """By their schemas: no argument is written to; and none reads files, random numbers or the outside."""
    for word in SAFE & set(dir(torch.ops.aten)):
        for overload in getattr(torch.ops.aten, word).overloads():
            schema = getattr(getattr(torch.ops.aten, word), overload)._schema
            writes = any(argument.alias_info and argument.alias_info.is_write for argument in schema.arguments)
            assert allowed(f"aten.{word}.{overload}") != writes, schema
            assert (
                torch.Tag.nondeterministic_seeded not in getattr(getattr(torch.ops.aten, word), overload).tags
                or word == "scaled_dot_product_attention"
            ), schema
    assert not {"from_file", "save", "load", "rand", "randn", "dropout", "set_data", "data"} & SAFE
    assert not allowed("aten.add_.Tensor")
    assert not allowed("aten.min.dim_min")
