"""secateur bench: runtimes side by side, each computing what PyTorch computes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scripts import module
from secateur import trace
from secateur.measure.turns import in_turns
from secateur.recipes import zoo
from secateur.runtime.rivals import RIVALS, Dense, rivals


class Two(nn.Module):
    """An image and a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4)

    def forward(self, image: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.conv(image).mean((2, 3)) + self.linear(row)


def test_every_runtime_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Two().eval(), (torch.randn(2, 3, 6, 6), torch.randn(2, 5))
    names = [name for name in RIVALS if name != "torch.compile"]  # it needs a compiler and a minute
    runs, absent = rivals(Dense(model, inputs, 1, tmp_path), names)
    assert {"PyTorch eager", "PyTorch eager, channels_last", "PyTorch bf16"} <= set(runs)
    assert set(runs) | set(absent) == set(names)
    expected = model(*inputs).detach()
    for name, run in runs.items():
        with torch.inference_mode():
            found = run()
        found = torch.as_tensor(np.asarray(found[0])) if isinstance(found, list) else found.float()
        exact = name not in ("PyTorch bf16", "ONNX Runtime int8")
        assert (found - expected).abs().max() < (1e-5 if exact else 0.1), name
    assert next(model.parameters()).dtype == torch.float32
    assert model.conv.weight.is_contiguous()


def test_a_runtime_that_fails_is_named(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("on purpose\nmore")

    runs, absent = rivals(Dense(Broken(), (torch.zeros(1),), 1, tmp_path), ["PyTorch eager"])
    assert runs == {}
    assert absent == {"PyTorch eager": "RuntimeError: on purpose"}


def test_turns_rotate_and_all_are_timed() -> None:
    order: list[str] = []
    ticks = iter(range(10_000))
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = in_turns(runs, 3, lambda: next(ticks) / 1000, least=0.0)
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys("abc", 3)
    assert all(t == pytest.approx(1.0) for taken in times.values() for t in taken)
    first = [order[6:][2 * 3 * turn] for turn in range(3)]
    assert first == ["a", "b", "c"]


def test_the_command(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ["bench", "zoo:digits_resnet", "--input", "1,1,8,8", "--rounds", "1", "--runtime", "PyTorch eager", "--json"]
    code, out, _ = call(*words)
    assert code == 0
    found = json.loads(out)
    assert found["fastest_dense"] == "PyTorch eager"
    assert [row["speedup"] for row in found["rows"]] == [1.0]
    code, _, err = call("bench", "zoo:digits_resnet", "--input", "1,1,8,8", "--runtime", "onnx runtime")
    assert code == 2
    assert "ONNX Runtime" in err


def test_the_short_fine_tune_of_channel_pruning_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, page = module("bench/channel_tune.py"), module("docs/make/channel.py")
    if find_spec("onnxruntime") is None:
        monkeypatch.setattr(tune, "onnx_milliseconds", lambda models, *_: dict.fromkeys(models, 1.0))
    torch.manual_seed(0)
    model, x = zoo.build("digits_resnet").eval(), torch.randn(48, 1, 8, 8)
    with torch.no_grad():
        data = [(part, model(part).argmax(1)) for part in x.split(16)]
    axes = trace(model, x[:1])
    names = [axis.name for axis in axes.free if axis.name.endswith("conv1") and axis.name.count(".")]
    axes = type(axes)(
        tuple(a if a.name in names else a.freeze("whole") for a in axes), axes.fingerprint, axes.terms, axes.notes
    )
    bench = tune.channel.Bench(model, axes, data[:2], data[1:], data)
    words = f"cifar_resnet20_a --data {tmp_path} --speedup 1.5 --epochs 2 --repeats 1 --lr 0.001".split()
    options = tune.parser().parse_args(words)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    whole = tune.row("l2", bench, data, options, tmp_path / "whole")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert whole["macs"] <= whole["dense_macs"] / 1.5
    assert whole["params"] < whole["dense_params"]
    assert [record["epoch"] for record in whole["epochs"]] == [1, 2]
    assert whole["epochs"][1]["loss"] < whole["epochs"][0]["loss"]
    assert whole["difference"] == pytest.approx(whole["last"] - whole["dense"])

    class Stopped(Exception):
        pass

    class Once:
        """The data, and an end to the run in its second pass."""

        def __init__(self) -> None:
            self.passes = 0

        def __len__(self) -> int:
            return len(data)

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.passes += 1
            if self.passes == 2:
                raise Stopped
            return iter(data)

    with pytest.raises(Stopped):
        tune.row("l2", bench, Once(), options, tmp_path / "part")
    again = tune.row("l2", bench, data, options, tmp_path / "part")
    for one, two in zip(whole["epochs"], again["epochs"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert again["last"] == whole["last"]
    text = "\n".join(
        page.tuned([json.loads(json.dumps(row)) for row in (whole, tune.row("dense", bench, data, options, tmp_path / "d"))])
    )
    assert text.count("| l2 |") == text.count("| dense |") == 1


def test_rows_of_the_latency_bench_keep_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, page = module("bench/latency_budget.py"), module("docs/make/channel.py")
    out, before = tmp_path / "rows.json", torch.get_num_threads()
    words = f"latency_budget.py --networks resnet20 --shares 0.7 --repeats 2 --out {out}".split()
    monkeypatch.setattr("sys.argv", words)
    try:
        bench.main()
    finally:
        torch.set_num_threads(before)
    found = json.loads(out.read_text())
    assert found["command"] == "python bench/latency_budget.py --networks resnet20 --shares 0.7 --repeats 2 --out FILE"
    assert (list(found["networks"]), found["batch"], found["seed"]) == (["resnet20"], 1, 0)
    assert found["versions"]
    assert found["hardware"]
    rows = found["networks"]["resnet20"]
    asked = [({"latency": 0.7}, "table"), ({"latency": 0.7}, "clock"), (bench.TOGETHER, "clock")]
    assert [(row["keep"], row["by"]) for row in rows] == asked
    for row in rows:
        if "refused" in row:  # two rounds on a busy machine may say anything of its milliseconds
            assert row["refused"].endswith(".")
            continue
        assert all(0 < row[what] <= 1 for what in ("macs", "params", "memory", "table")), row
        assert row["measured"] > 0
        assert all(row[what] <= share for what, share in row["keep"].items() if what != "latency"), row
    assert rows[0].get("table", 0.7) <= 0.7 + 1e-9
    assert sum(line.startswith("| resnet20 |") for line in page.milliseconds(found)) == len(rows)
