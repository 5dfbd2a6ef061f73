"""Compiled models: the outputs of the original, whatever the architecture, input size, threads and form of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from secateur import runtime
from secateur.cli.main import application
from secateur.core.errors import SecateurError
from secateur.runtime import build, file, library, tune
from secateur.runtime.capture import capture
from secateur.runtime.fuse import fuse
from secateur.runtime.graph import Graph
from secateur.runtime.operations import SAFE, allowed

MISSING = library.missing()
needs_kernels = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the engine is there")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer kernels tried, one run each, none remembered: these tests ask what comes out, not how fast."""
    monkeypatch.setattr(tune, "TILES", dict.fromkeys(tune.TILES, (2, 3)))
    monkeypatch.setattr(tune, "WIDE", dict.fromkeys(tune.WIDE, (1,)))
    monkeypatch.setattr(tune, "HALF_TILES", dict.fromkeys(tune.HALF_TILES, (1, 2)))
    monkeypatch.setattr(tune, "HALF_WIDE", dict.fromkeys(tune.HALF_WIDE, (1,)))
    monkeypatch.setenv("SECATEUR_ENGINE_REMEMBER", "off")
    monkeypatch.setattr(tune._Remembered, "known", {})


def thin(model: nn.Module, zeros: float = 0.9, seed: int = 0) -> nn.Module:
    """`model` in evaluation, its weights thinned, its batch norms with statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data *= torch.rand(module.weight.shape, generator=generator) >= zeros
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr,operator]
    return model.eval()


class Bottleneck(nn.Module):
    """Two convolutions around a strided one, with a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 12, 1)
        self.na, self.nb, self.nc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(12)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.na(self.a(x)))
        y = F.relu(self.nb(self.b(y)), inplace=True)
        y = self.nc(self.c(y))
        y += self.shortcut(x)
        return F.relu_(y)


class Squeeze(nn.Module):
    """An inverted bottleneck with squeeze and excitation, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.deep, self.down = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 5, 1, 2, groups=24), nn.Conv2d(24, 8, 1)
        self.first, self.second = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.norm = nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.up(x)))
        y = F.silu(self.deep(y))
        scale = F.hardsigmoid(self.second(F.relu(self.first(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.down(scale * y)


class Dense(nn.Module):
    """Concatenations with batch norms behind them, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12), nn.BatchNorm2d(16)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            parts.append(conv(F.relu(norm(torch.cat(parts, 1)))))
        return F.avg_pool2d(F.relu(self.norms[2](torch.cat(parts, 1))), 2)


class OptionA(nn.Module):
    """A shortcut of every second pixel and zeros for new channels, as in the first CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


class Attention(nn.Module):
    """A transformer's block: sparse linears between operations only PyTorch knows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 96), nn.Linear(96, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(x)))


class Several(nn.Module):
    """Two inputs, and a dict of outputs one of which is an intermediate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        z = F.relu(self.conv(x)) + F.relu(self.conv(y))
        return {"map": z, "scores": (self.head(z.mean((2, 3))), x)}


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Bottleneck(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(), nn.Linear(12, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "plain": (plain, ((2, 3, 33, 40),)),
    "bottleneck": (Bottleneck, ((1, 8, 15, 15),)),
    "squeeze": (Squeeze, ((1, 8, 14, 14),)),
    "squeeze, batch of 16": (Squeeze, ((16, 8, 6, 6),)),
    "dense": (Dense, ((3, 8, 10, 12),)),
    "option A": (OptionA, ((4, 8, 8, 8),)),
    "attention": (Attention, ((2, 17, 24),)),
    "several": (Several, ((1, 3, 9, 9), (1, 3, 9, 9))),
    "valid and dilated": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 4, 3, 1, 1, 2, groups=2), nn.Flatten()),
        ((2, 3, 12, 9),),
    ),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(4, 2, 1)), ((1, 3, 8, 8),)),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, shapes = NETWORKS[name]
    torch.manual_seed(0)
    return thin(make()), tuple(torch.randn(shape) for shape in shapes)


def same(found: Any, wanted: Any) -> None:
    """Equal structure, values within 1e-4 of the largest."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for key in wanted:
            same(found[key], wanted[key])
    elif isinstance(wanted, (tuple, list)):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            same(a, b)
    else:
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) <= 1e-4 * max(float(wanted.abs().max()), 1e-3)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_are_those_of_the_model(name: str, threads: int) -> None:
    model, inputs = network(name)
    with torch.no_grad():
        wanted = model(*inputs)
    fast = runtime.compile(model, inputs, threads=threads)
    same(fast(*inputs), wanted)
    again = fast(*inputs)
    same(again, wanted)


@needs_kernels
@pytest.mark.parametrize("isa", library.usable() if not MISSING else ())
def test_every_instruction_set_runs_whole_networks(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE_ISA", isa)
    model, inputs = network("plain")
    fast = runtime.compile(model, inputs)
    same(fast(*inputs), model(*inputs).detach())


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_other_sizes_are_planned_when_they_come(name: str) -> None:
    model, inputs = network(name)
    fast = runtime.compile(model, inputs)
    for batch in (1, 3, 16, 32):
        x = torch.randn(batch, *inputs[0].shape[1:])
        same(fast(x), model(x).detach())
    if name == "plain":
        x = torch.randn(1, 3, 50, 70)
        same(fast(x), model(x).detach())


def test_inputs_that_do_not_fit_are_refused_in_one_sentence() -> None:
    model, inputs = network("plain")
    fast = runtime.compile(model, inputs)
    for wrong in ((torch.randn(1, 4, 33, 40),), (*inputs, *inputs)):
        with pytest.raises(SecateurError, match="running a compiled model"):
            fast(*wrong)


def test_a_model_that_cannot_be_followed_is_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SecateurError, match=r"torch\.export cannot follow"):
        runtime.compile(Branch(), torch.randn(2, 3))


def test_folded_weights_keep_their_zeros() -> None:
    model, inputs = network("plain")
    graph: Graph = fuse(capture(model, inputs))
    zeros = [int((node.tensors["weight"] == 0).sum()) for node in graph.nodes if node.op == "conv"]
    assert sum(zeros) == sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Conv2d))
    assert {node.op for node in graph.nodes} == {"conv", "maxpool", "adaptive", "flatten", "linear"}, "everything else is fused"


@needs_kernels
def test_layers_all_zero_give_their_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1)).eval()
    for parameter in (model[0].weight, model[2].weight):
        nn.init.zeros_(parameter)  # type: ignore[arg-type]
    x = torch.randn(1, 3, 8, 8)
    same(runtime.compile(model, x)(x), model(x).detach())


@needs_kernels
def test_choices_tell_how_each_layer_runs() -> None:
    model, inputs = network("bottleneck")
    rows = runtime.compile(model, inputs).choices(*inputs)
    assert [row["layer"] for row in rows] == ["a", "b", "c", "shortcut.0"]
    assert all(row["runs"] == "engine" and row["ms"] > 0 and 0.7 < row["sparsity"] < 1 for row in rows)


@needs_kernels
def test_a_dense_layer_is_left_to_pytorch_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import plan

    model, inputs = network("bottleneck")
    monkeypatch.setattr(plan, "layer_floor", lambda *_: 0.0)
    monkeypatch.setattr(plan, "dense_floor", lambda *_: 1e18)
    monkeypatch.setattr(plan, "COPY_RATE", 1e18)
    monkeypatch.setattr(plan, "dense_nanoseconds", lambda node, *_: 0 if node.settings["layer"] == "b" else 10**12)
    fast = runtime.compile(model, inputs)
    assert {row["layer"]: row["runs"] for row in fast.choices(*inputs)} == {
        "a": "engine", "b": "dense", "shortcut.0": "engine", "c": "engine",
    }  # fmt: skip
    same(fast(*inputs), model(*inputs).detach())


def close(found: Any, wanted: Any) -> None:
    """Equal structure, values within 2e-2 of the largest: what rounding every value and weight to 8 bits may cost."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        wanted, found = list(wanted.values()), [found[key] for key in wanted]
    if isinstance(wanted, (tuple, list)):
        for a, b in zip(found, wanted, strict=True):
            close(a, b)
        return
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max()) <= 2e-2 * max(float(wanted.abs().max()), 1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_in_bf16_are_those_of_the_model_within_its_rounding(name: str) -> None:
    model, inputs = network(name)
    with torch.no_grad():
        wanted = model(*inputs)
    fast = runtime.compile(model, inputs, threads=2, precision="bf16")
    found = fast(*inputs)
    close(found, wanted)
    close(fast(*inputs), found)


@needs_kernels
@pytest.mark.parametrize("isa", library.usable() if not MISSING else ())
def test_every_instruction_set_runs_whole_networks_in_bf16(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE_ISA", isa)
    model, inputs = network("plain")
    fast = runtime.compile(model, inputs, precision="bf16")
    for batch in (1, 16):
        x = torch.randn(batch, *inputs[0].shape[1:])
        close(fast(x), model(x).detach())


@needs_kernels
def test_choices_tell_in_what_values_a_layer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import plan

    model, inputs = network("bottleneck")
    rows = runtime.compile(model, inputs, precision="bf16").choices(*inputs)
    assert {(row["runs"], row["values"], row["tile"] % 32) for row in rows} == {("engine", "bf16", 0)}
    assert {row["values"] for row in runtime.compile(model, inputs).choices(*inputs)} == {"float32"}
    monkeypatch.setattr(plan, "HARDWARE", "")  # as if the CPU had instructions for bf16
    monkeypatch.setattr(plan, "layer_floor", lambda *_: 0.0)
    monkeypatch.setattr(plan, "dense_floor", lambda *_: 1e18)
    monkeypatch.setattr(plan, "dense_nanoseconds", lambda node, *_: 0 if plan.is_half(node) else 10**12)
    monkeypatch.setattr(plan, "COPY_RATE", 1e18)
    fast = runtime.compile(model, inputs, precision="bf16")
    assert {(row["runs"], row["values"]) for row in fast.choices(*inputs)} == {("dense", "bf16")}
    close(fast(*inputs), model(*inputs).detach())


@pytest.mark.parametrize("name", ["plain", "attention", "several"])
def test_a_network_dense_in_bf16_gives_its_outputs(name: str) -> None:
    from secateur.runtime.dense import halved_graph, is_half, run_dense

    model, inputs = network(name)
    graph = halved_graph(fuse(capture(model, inputs)))
    assert any(is_half(node) for node in graph.nodes)
    with torch.inference_mode():
        close(run_dense(graph, inputs), model(*inputs))


def test_one_slow_run_does_not_decide_between_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import plan

    taken: dict[Any, list[int]] = {"quick": [5, 5, 100], "slow": [8, 8, 8]}
    monkeypatch.setattr(plan, "_time", lambda which, *_: taken[which].pop())
    assert plan._faster(["slow", "quick"], ()) == "quick"  # type: ignore[list-item,comparison-overlap]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SecateurError, match="no such precision"):
        runtime.compile(nn.Linear(3, 3), torch.randn(2, 3), precision="bf15")


def test_a_file_keeps_the_precision(tmp_path: Path) -> None:
    model, inputs = network("plain")
    for precision in ("float32", "bf16"):
        runtime.save(tmp_path / "m.engine", runtime.prepare(model, inputs, precision=precision), inputs)
        again = runtime.load(tmp_path / "m.engine")
        assert again.precision == precision
        close(again(*inputs), model(*inputs).detach())
    older = spoiled((tmp_path / "m.engine").read_bytes(), lambda table: table.pop("precision"))
    (tmp_path / "m.engine").write_bytes(older)
    assert runtime.load(tmp_path / "m.engine").precision == "float32"


def test_without_kernels_everything_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE", "off")
    library._library.cache_clear()
    try:
        model, inputs = network("plain")
        fast = runtime.compile(model, inputs)
        assert "not available because" in fast.note
        same(fast(*inputs), model(*inputs).detach())
        assert {row["runs"] for row in fast.choices(*inputs)} == {"dense"}
        with pytest.raises(SecateurError, match="the sparse engine"):
            library.library()
    finally:
        library._library.cache_clear()


def test_no_compiler_is_one_clear_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.Unbuilt, match=r"no C\+\+ compiler"):
        build.compiler()


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


def spoiled(data: bytes, change: Any) -> bytes:
    """The file with `change` made to its graph, and a checksum that fits again."""
    from secateur.io.container import header_of, pack, tensors_of

    header = header_of(data, "a test")
    table = json.loads(header.metadata["engine"])
    change(table)
    metadata = {key: value for key, value in header.metadata.items() if key != "sha256"} | {"engine": json.dumps(table)}
    head, body = pack(tensors_of(data, "a test"), metadata, "a test")
    return head + bytes(body)


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


MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model[0].weight.data *= torch.rand_like(model[0].weight) > 0.9
    return model
"""


def told(*words: str) -> Any:
    """What a command says as JSON."""
    found = CliRunner().invoke(application(), [*words, "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.output)


def test_the_command_exports_measures_and_inspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    made = told("export", "net.py:build", "--to", "sparse", "--input", "1,3,16,16", "-o", "m.engine")
    assert made["bytes"] == (tmp_path / "m.engine").stat().st_size
    assert made["precision"] == "float32"
    half = told("export", "net.py:build", "--precision", "bf16", "--input", "1,3,16,16", "-o", "h.engine")
    assert half["precision"] == told("measure", "h.engine", "--repeats", "3")["precision"] == "bf16"
    assert told("inspect", "h.engine")["precision"] == "bf16"
    measured = told("measure", "m.engine", "--repeats", "3")
    assert measured["latency_ms"] > 0
    layers = told("inspect", "m.engine")["layers"]
    assert [row["layer"] for row in layers] == ["0", "4"]
    assert layers[0]["sparsity"] > 0.8
