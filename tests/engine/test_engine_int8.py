"""int8 in whole networks: outputs, ranges and their calibration, files, accuracy and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine_networks import MODEL, NETWORKS, flat_of, network, spoiled, told
from scripts import DATA
from secateur import runtime
from secateur.core.errors import SecateurError
from secateur.native import library
from secateur.runtime import plan
from secateur.runtime.coding import code_of, weight_codes

MISSING = library.missing()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "the engine is there"),
    pytest.mark.usefixtures("one_int8_kernel"),
]


@pytest.mark.parametrize("name", ["plain", "squeeze, batch of 16", "dense", "option A", "valid and dilated"])
def test_every_instruction_set_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = network(name)
    fast = runtime.prepare(model, inputs, precision="int8")
    found = []
    for isa in library.usable():
        monkeypatch.setenv("SECATEUR_ENGINE_ISA", isa)
        made = fast.plan(*inputs)
        assert made.program is not None
        assert any(layer.size == 1 for layer in made.program.layers.values())
        with torch.inference_mode():
            found.append(made.run(inputs))
    monkeypatch.delenv("SECATEUR_ENGINE_ISA")
    library.library()
    assert len(found) == 1 or all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_in_int8_are_those_of_the_model_within_its_rounding(name: str) -> None:
    """Within 4e-2 of the largest output, calibrated on the inputs it is asked for."""
    model, inputs = network(name)
    with torch.no_grad():
        wanted = flat_of(model(*inputs))
    fast = runtime.compile(model, inputs, threads=2, precision="int8")
    found = flat_of(fast(*inputs))
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert float((a - b).abs().max()) <= 4e-2 * max(float(b.abs().max()), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(flat_of(fast(*inputs)), found, strict=True))


def test_sizes_threads_and_lanes_leave_the_bits_of_an_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = network("plain")
    x = torch.randn(32, 3, 33, 40)
    fast = runtime.prepare(model, x, precision="int8")
    with torch.no_grad():
        whole = fast(x)
        assert torch.equal(fast(x[5:8]), whole[5:8])
        monkeypatch.setattr(plan, "_ways", lambda *_: [(16, 16, 1)])
        fast.threads = 2
        assert torch.equal(fast(x), whole)


def test_int8_has_to_be_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SECATEUR_ENGINE_REMEMBER", "off")
    model, inputs = network("bottleneck")
    rows = runtime.compile(model, inputs, precision="int8").choices(*inputs)
    assert {row["values"] for row in rows} <= {"int8", "bf16", "float32"}
    seen = {1: 8, 2: 5, 4: 5}
    monkeypatch.setattr(plan, "_time", lambda which, *_: seen[next(iter(which.program.layers.values())).size])
    monkeypatch.setattr(plan, "dense_floor", lambda *_: 1e18)
    monkeypatch.setattr(plan, "_better_dense", lambda *_: {})
    for least, words in ((1, {"int8"}), (2, {"bf16", "float32"})):
        seen[least] = 1
        made = runtime.compile(model, inputs, precision="int8")
        assert {row["values"] for row in made.choices(*inputs)} <= words
        seen[least] = 9


def test_ranges_reach_over_all_batches_and_zero() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()).eval()
    x = torch.arange(8.0).reshape(2, 1, 2, 2) + 1
    fast = runtime.prepare(model, x, precision="int8", calibration=[x, (-3 * x,)])
    assert fast.coding.ranges[fast.graph.inputs[0]] == (-24.0, 8.0)
    assert all(low <= 0 <= high for low, high in fast.coding.ranges.values())
    assert code_of((0.0, 51.0)).zero == 0
    for known in ((-24.0, 8.0), (-1.0, 100.0), (0.0, 51.0), (0.0, 0.0)):
        code = code_of(known)
        for end in known:
            assert -1e-4 <= end / code.scale + code.zero <= 255 + 1e-4
        assert 0 - code.scale * code.zero == code.shift


def test_calibration_refuses_what_8_bits_cannot_hold() -> None:
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(SecateurError, match="no inputs"):
        runtime.prepare(nn.Conv2d(3, 2, 1), x, precision="int8", calibration=[])
    with pytest.raises(SecateurError, match="not finite"):
        runtime.prepare(nn.Conv2d(3, 2, 1), x / 0, precision="int8")
    broken = nn.Conv2d(3, 2, 1)
    broken.weight.data[0] = float("inf")
    with pytest.raises(SecateurError, match="not finite"):
        runtime.prepare(broken, x, precision="int8")
    with pytest.raises(SecateurError, match="calibrat"):
        runtime.prepare(nn.Conv2d(3, 2, 1), x, precision="int8", calibration=[(x, x)])
    with pytest.raises(SecateurError, match="calibrat"):
        runtime.prepare(nn.Conv2d(3, 2, 1), x, precision="int8", calibration=[torch.randn(1, 4, 4, 4)])


def test_weights_are_the_nearest_whole_numbers() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((20, 300)).astype(np.float32) * (generator.random((20, 300)) > 0.9)
    weight[3] = 0
    codes, scale = weight_codes(weight)
    assert codes.dtype == np.float32
    assert np.array_equal(codes, np.rint(codes))
    assert not codes[weight == 0].any()
    assert (np.abs(codes).max(1) == np.where(np.arange(20) == 3, 0, 127)).all()
    assert (np.abs(codes * scale[:, None] - weight).max(1) <= 0.5001 * np.abs(weight).max(1) / 127).all()


def test_a_row_with_too_many_weights_for_an_int32_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import placing

    monkeypatch.setattr(placing, "MOST", 20)
    model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(4, 30)
    rows = runtime.compile(model, x, precision="int8").choices(x)
    assert [row["runs"] for row in rows] == ["dense", "engine"]


def test_a_file_keeps_the_ranges(tmp_path: Path) -> None:
    model, inputs = network("plain")
    fast = runtime.prepare(model, inputs, precision="int8", calibration=[inputs, tuple(3 * x for x in inputs)])
    runtime.save(tmp_path / "m.engine", fast, inputs)
    again = runtime.load(tmp_path / "m.engine")
    assert again.precision == "int8"
    assert again.coding.ranges == {name: fast.coding.ranges[name] for name in again.coding.ranges}
    assert torch.equal(again(*inputs), fast(*inputs))


def name_of(table: dict[str, Any]) -> str:
    return str(table["nodes"][0]["name"])


SPOILS: dict[str, Any] = {
    "no ranges": lambda t: t.pop("ranges"),
    "ranges that are a list": lambda t: t.update(ranges=[1, 2]),
    "a value without a range": lambda t: t["ranges"].pop(name_of(t)),
    "a range of three": lambda t: t["ranges"].update({name_of(t): [-1.0, 0.0, 1.0]}),
    "a range of words": lambda t: t["ranges"].update({name_of(t): ["a", "b"]}),
    "a range without zero": lambda t: t["ranges"].update({name_of(t): [1.0, 2.0]}),
    "a range upside down": lambda t: t["ranges"].update({name_of(t): [1.0, -1.0]}),
    "an infinite range": lambda t: t["ranges"].update({name_of(t): [-1.0, 1e999]}),
    "no number": lambda t: t["ranges"].update({name_of(t): [float("nan"), 1.0]}),
    "a range of whole numbers": lambda t: t["ranges"].update({name_of(t): [0, 1]}),
    "a number too large for float32": lambda t: t["ranges"].update({name_of(t): [0.0, 1e300]}),
}


@pytest.mark.parametrize("what", SPOILS)
def test_a_file_with_other_ranges_is_refused(what: str, tmp_path: Path) -> None:
    model, inputs = network("bottleneck")
    path = tmp_path / "m.engine"
    runtime.save(path, runtime.prepare(model, inputs, precision="int8"), inputs)
    runtime.load(path)
    path.write_bytes(spoiled(path.read_bytes(), SPOILS[what]))
    with pytest.raises(SecateurError, match="loading"):
        runtime.load(path)


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason="no data folder: set SECATEUR_DATA")
def test_a_published_network_keeps_its_accuracy_in_int8() -> None:
    """ResNet-20, 1,024 test images; calibrated on training images. Within a point of float32."""
    from safetensors.torch import load_file

    from secateur import data
    from secateur.recipes import zoo

    model = zoo.build("cifar_resnet20_a").eval()
    model.load_state_dict(load_file(DATA / "weights" / "cifar10_resnet20_a.safetensors"))
    batches = data.loaders(data.cifar10(DATA).normalised("imagenet"), data.BatchSettings(batch=128, holdout=0, augment=False))
    seen = [next(iter(batches.train))[0] for _ in range(2)]
    fast = runtime.compile(model, seen[0], precision="int8", calibration=seen)
    assert {row["values"] for row in fast.choices(seen[0])} == {"int8"}
    right = {"float32": 0, "int8": 0}
    count = 0
    with torch.inference_mode():
        for images, labels in batches.test:
            for x, y in zip(images.split(128), labels.split(128), strict=True):
                if len(x) < 128 or count >= 1024:
                    continue
                count += len(x)
                for name, net in (("float32", model), ("int8", fast)):
                    right[name] += int((net(x).argmax(1) == y).sum())
    assert count == 1024
    assert right["float32"] / count > 0.9
    assert abs(right["int8"] - right["float32"]) / count <= 0.01


BATCHES = """
def batches():
    return [(10 * torch.ones(2, 3, 16, 16), torch.zeros(2, dtype=torch.long))]
"""


def test_the_command_exports_measures_and_inspects_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL + BATCHES)
    export = ("export", "net.py:build", "--precision", "int8", "--input", "1,3,16,16", "-o", "m.engine")
    assert told(*export)["precision"] == "int8"
    assert max(high for _, high in runtime.load("m.engine").coding.ranges.values()) < 9
    made = told(*export, "--data", "net.py:batches")
    assert made["calibrated_on"] == 1
    loaded = runtime.load("m.engine")
    assert loaded.coding.ranges[loaded.graph.inputs[0]] == (0.0, 10.0)
    assert told("measure", "m.engine", "--repeats", "3")["precision"] == "int8"
    shown = told("inspect", "m.engine")
    assert shown["precision"] == "int8"
    assert shown["layers"][0]["values"] == "int8"
