"""Bad input, through the library and the command line: one clear sentence, nothing lost or half-written, no code run."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bad_files import check, folder, made
from secateur import allocate, criteria
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.graph import trace
from secateur.io import build, load, load_weights, read_json, read_plan, read_text, resolve, save, write_text
from secateur.surgery import fingerprint
from secateur.train import FitSettings, evaluate, fit

__all__ = ["folder", "made"]

X = torch.zeros(1, 3, 4, 4)


def net(name: str = "build") -> nn.Module:
    return build(f"net.py:{name}")


def axes_of(model: nn.Module) -> Any:
    return trace(model, X)


def with_state(value: object) -> nn.Module:
    class Holder(nn.Module):
        def get_extra_state(self) -> object:
            return value

    return Holder()


def with_sparse() -> nn.Module:
    holder = nn.Module()
    holder.register_buffer("x", torch.eye(3).to_sparse())
    return holder


def on_a_full_disk(act: Callable[[], object]) -> object:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        return act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def train(model: nn.Module, fill: float) -> object:
    batch = torch.full((4, 3, 4, 4), fill), torch.zeros(4, dtype=torch.int64)
    return fit(model, [batch], FitSettings(epochs=1, lr=0.1))


def plan_path(name: str) -> Callable[[], object]:
    return lambda: read_plan(f"{name}.json").apply(net())


def model_path(name: str, into: str = "build") -> Callable[[], object]:
    return lambda: load(f"{name}.safetensors", into=net(into))


def weights_path(name: str) -> Callable[[], object]:
    return lambda: load_weights(name, net())


FILES: dict[str, tuple[str, Callable[[], object]]] = {
    "a missing file": ("did you mean 'small.safetensors'", model_path("smal")),
    "a missing folder": ("no such file", lambda: load("a/b/c", net())),
    "a folder as a file": ("a folder", lambda: read_text(".")),
    "a file as a folder": ("Not a directory", lambda: read_text("net.py/x")),
    "a pipe that nobody fills": ("no regular file", lambda: load("pipe", net())),
    "a link to itself": ("symbolic links", lambda: read_plan("loop")),
    "a path with a zero byte": ("null byte", lambda: read_text("a\0b")),
    "no path": ("NoneType", lambda: read_text(None)),  # type: ignore[arg-type]
    "text of another encoding": ("no UTF-8", lambda: read_text("weights.pt")),
    "writing into a missing folder": ("no such folder", lambda: save("a/b", net())),
    "writing below a file": ("a file where a folder should be", lambda: save("net.py/b", net())),
    "writing over a folder": ("a folder of that name", lambda: save(".", net())),
    "writing to a name that ends as a folder": ("a folder of that name", lambda: write_text("new/", "x")),
    "writing to an empty name": ("a folder of that name", lambda: write_text("", "x")),
    "saving over a pipe": ("a device or pipe", lambda: save("pipe", net())),
    "writing over a pipe": ("a device or pipe", lambda: write_text("pipe", "x")),
    "writing to a link to itself": ("links that point", lambda: write_text("loop", "x")),
    "writing to a zero byte": ("null byte", lambda: write_text("a\0b", "x")),
    "writing to nothing": ("no path", lambda: write_text(None, "x")),  # type: ignore[arg-type]
    "writing to a long name": ("a name too long", lambda: write_text("x" * 300, "x")),
    "a full disk, new file": ("a full disk", lambda: on_a_full_disk(lambda: save("new", net()))),
    "a full disk, old file": ("a full disk", lambda: on_a_full_disk(lambda: save("small.safetensors", net()))),
    "a full disk, text": ("a full disk", lambda: on_a_full_disk(lambda: write_text("plan.json", "x" * 100))),
    "JSON that is none": ("no JSON", lambda: read_json("net.py")),
}
MODELS: dict[str, tuple[str, Callable[[], object]]] = {
    "an empty model file": ("an empty file", model_path("empty")),
    "a model file cut in its header": ("cut short inside its header", model_path("cut in header")),
    "a model file cut in its tensors": ("a damaged", model_path("cut in body")),
    "a model file with more at its end": ("a damaged", model_path("longer")),
    "a flipped bit in a tensor": ("checksum", model_path("flipped body")),
    "a changed unit in the plan": ("checksum", model_path("flipped plan")),
    "a header of 9 exabytes": ("header said to be", model_path("oversized")),
    "a header of 200 megabytes": ("header said to be", model_path("two hundred megabytes")),
    "a deep header": ("nested too deep", model_path("deep header")),
    "a header of lists": ("no table of tensors", model_path("list header")),
    "zeros": ("no safetensors file", model_path("no header")),
    "a newer model file": ("newer than the 2", model_path("newer")),
    "a dense model file said to be packed": ("without its index", model_path("another format")),
    "a model file of an odd format": ("format 'one'", model_path("odd")),
    "a newer plan in a model file": ("newer than the 1", model_path("newer plan")),
    "a forged plan with a true checksum": ("conv.weight", model_path("forged plan")),
    "forged ties": ("'x' tied to 'y'", model_path("forged ties")),
    "ties that are none": ("tied tensors", model_path("no ties")),
    "whole numbers for a weight": ("torch.int32 where the model has torch.float32", model_path("whole numbers")),
    "different values for tied tensors": ("different values", model_path("untied", "tied")),
    "a Git LFS pointer": ("Git LFS", weights_path("pointer.safetensors")),
    "weights given to load": ("no safetensors file", lambda: load("weights.pt", net())),
    "another architecture": ("'conv.weight'", model_path("small", "other")),
    "a wider architecture": ("conv.weight", model_path("small", "wider")),
    "a model already cut": ("before any cut", lambda: load("small.safetensors", load("small.safetensors", net()))),
    "a class as a model": ("the class Net", lambda: load("small.safetensors", resolve("net.py:Net"))),
    "nothing as a model": ("of type NoneType in place of a model", lambda: load("small.safetensors", None)),  # type: ignore[arg-type]
    "saving no model": ("of type dict in place of a model", lambda: save("new", {}, None)),  # type: ignore[arg-type]
    "saving with the wrong plan": ("does not lead to", lambda: save("new", net(), read_plan("plan.json"))),
    "saving with no plan": ("in place of a plan", lambda: save("new", net(), {"conv": [1]})),  # type: ignore[arg-type]
    "saving state that is no tensor": ("no tensor", lambda: save("new", with_state({"a": 1}))),
    "saving a sparse tensor": ("sparse", lambda: save("new", with_sparse())),
    "saving without values": ("device meta", lambda: save("new", net().to("meta"))),
    "saving metadata that is ours": ("metadata 'plan'", lambda: save("new", net(), metadata={"plan": "x"})),
    "saving metadata that is no text": ("metadata 'x'", lambda: save("new", net(), metadata={"x": 1})),  # type: ignore[dict-item]
    "a plan out of a dense model": ("without a plan", lambda: read_plan("dense.safetensors")),
}
WEIGHTS: dict[str, tuple[str, Callable[[], object]]] = {
    "a pickle bomb": ("could run code", weights_path("bomb.pt")),
    "a pickle bomb, old format": ("could run code", weights_path("old bomb.pt")),
    "a pickle bomb, bare": ("more than tensors", weights_path("bomb.pkl")),
    "a whole pickled model": ("torch.nn.modules.linear.Linear, an object that could run code", weights_path("whole.pt")),
    "half a checkpoint": ("damaged or truncated", weights_path("half.pt")),
    "a web page": ("a download that failed", weights_path("page.pt")),
    "arrays of numpy": ("damaged or truncated", weights_path("arrays.npz")),
    "a list": ("of type list in place of a state dict", weights_path("list.pt")),
    "no tensors": ("no tensors", weights_path("nothing.pt")),
    "a number among the tensors": ("'conv.weight', state that is no tensor (int)", weights_path("number.pt")),
    "a sparse tensor": ("sparse", weights_path("sparse.pt")),
    "a tensor without values": ("meta", weights_path("meta.pt")),
    "NaN weights": ("NaN in 'conv.weight'", weights_path("nan.pt")),
    "a wrong shape": ("'conv.weight' of [8, 3, 5, 5] where the model has [8, 3, 3, 3]", weights_path("shape.pt")),
    "weights of another network": (
        "no '0.bias', '0.weight'; an unknown 'conv.bias'",
        lambda: load_weights("weights.pt", net("other")),
    ),
    "a compressed model as weights": ("use secateur.load", weights_path("small.safetensors")),
}
PLANS: dict[str, tuple[str, Callable[[], object]]] = {
    "a newer plan": ("newer than the 1", plan_path("newer")),
    "a negative unit": ("'-1' is no unit", plan_path("negative")),
    "a unit twice": ("none is named twice", plan_path("duplicate")),
    "a hundred billion units": ("unit 99999999999 of 8", plan_path("huge")),
    "a unit outside": ("unit 8 of 8", plan_path("outside")),
    "no unit": ("no unit left", plan_path("nothing")),
    "a dim of another size": ("a dim of 3", plan_path("elsewhere")),
    "an attribute the model does not have": ("depth", plan_path("attribute")),
    "an attribute that is no number": ("padding_mode", plan_path("text attribute")),
    "an attribute too small": ("in_channels", plan_path("long attribute")),
    "an attribute of a class": ("no attribute that counts", plan_path("class")),
    "a plan that names a module": ("unknown key 'module'", plan_path("import")),
    "a plan with another verb": ("does 'exec'", plan_path("step")),
    "a plan cut short": ("no JSON", plan_path("cut short")),
    "an empty plan file": ("an empty file", plan_path("empty")),
    "a plan nested deep": ("nested too deep", plan_path("deep")),
    "a key twice": ("'format' twice", plan_path("twice")),
    "a list as a plan": ("a list of 3 for the plan", plan_path("numbers")),
    "a plan of another architecture": ("conv.weight", lambda: read_plan("plan.json").apply(net("other"))),
    "a plan of a wider network": ("where the plan has", lambda: read_plan("plan.json").apply(net("wider"))),
    "a plan applied twice": ("where the plan has", lambda: read_plan("plan.json").apply(read_plan("plan.json").apply(net()))),
    "plans that do not follow": ("two plans composed", lambda: read_plan("plan.json").then(read_plan("plan.json"))),
    "plans of two networks": ("two plans composed", lambda: Plan(fingerprint(net("other"))).then(read_plan("plan.json"))),
    "a preview of another network": ("", lambda: read_plan("plan.json").preview(net("other"))),
    "an unknown axis": ("no axis of that name", lambda: axes_of(net()).plan({"cnov": [0]})),
    "half a unit": ("unit 0.5", lambda: axes_of(net()).plan({axes_of(net()).free[0].name: [0.5]})),
    "a truth as a unit": ("unit True", lambda: axes_of(net()).plan({axes_of(net()).free[0].name: [True]})),
    "a unit that is not there": ("unit 8", lambda: axes_of(net()).plan({axes_of(net()).free[0].name: [0, 8]})),
}
OBJECTS: dict[str, tuple[str, Callable[[], object]]] = {
    "no colon": ("write net.py:NAME", lambda: resolve("net.py")),
    "nothing named": ("no name after a colon", lambda: resolve("")),
    "a missing Python file": ("did you mean 'net.py'", lambda: resolve("nte.py:build")),
    "a missing function": ("did you mean 'build'", lambda: resolve("net.py:biuld")),
    "a missing part of a value": ("no 'x' in", lambda: resolve("net.py:VALUE.x")),
    "a file with a syntax error": ("SyntaxError at syntax.py line 1", lambda: resolve("syntax.py:build")),
    "a file that raises": ("ValueError at raises.py line 2: at import", lambda: resolve("raises.py:build")),
    "a file that leaves": ("SystemExit at leaves.py line 2", lambda: resolve("leaves.py:build")),
    "a file that needs more": ("a_module_nobody_has", lambda: resolve("needs.py:build")),
    "a missing module": ("no module 'nobody_has_this'", lambda: resolve("nobody_has_this.inner:f")),
    "a module that fails": ("ValueError at raises.py line 2", lambda: resolve("raises:f")),
    "no module name": ("neither a .py file nor a module", lambda: resolve("a b:f")),
    "a builder that fails": ("RuntimeError at net.py line", lambda: net("fails")),
    "a builder of no model": ("of type int in place of a model", lambda: net("number")),
    "a value that is no builder": ("cannot be called", lambda: net("VALUE")),
    "a wrong argument": ("TypeError", lambda: build("net.py:build", depth=3)),
}
WORK: dict[str, tuple[str, Callable[[], object]]] = {
    "tracing no model": ("", lambda: trace({}, X)),  # type: ignore[arg-type]
    "no example": ("no example input", lambda: trace(net(), None)),
    "inputs of another shape": (
        "inputs of shape [2, 9]",
        lambda: evaluate(net(), [(torch.zeros(2, 9), torch.zeros(2).long())]),
    ),
    "a label nobody has": ("Target 99", lambda: evaluate(net(), [(X, torch.full((len(X),), 99))])),
    "all axes ignored": (
        "no axis that can be cut",
        lambda: allocate.budget(axes_of(net()).ignore("*"), {}, {"macs": 0.5}),
    ),
    "an example of the wrong shape": ("", lambda: trace(net(), torch.zeros(1, 4, 4, 4))),
    "an example of another kind": ("", lambda: trace(net(), "image")),
    "a budget nobody can meet": (
        "least",
        lambda: allocate.budget(a := axes_of(net()), criteria.score(a, criteria.l2(net())), {"macs": 1e-4}),
    ),
    "a budget above all": (
        "",
        lambda: allocate.budget(a := axes_of(net()), criteria.score(a, criteria.l2(net())), {"macs": 2}),
    ),
    "a budget on something else": (
        "",
        lambda: allocate.budget(a := axes_of(net()), criteria.score(a, criteria.l2(net())), {"mcas": 0.5}),
    ),
    "scores of NaN weights": ("", lambda: criteria.score(axes_of(net()), criteria.l2(net("nan")))),
    "too few scores": ("", lambda: criteria.score(axes_of(net()), lambda axis: torch.ones(3))),
    "a loss that is NaN": ("", lambda: train(net(), float("nan"))),
    "an unknown optimizer": ("", lambda: FitSettings(epochs=1, optimizer="sdg")),
}
LIBRARY = FILES | MODELS | WEIGHTS | PLANS | OBJECTS | WORK


@pytest.mark.parametrize("case", LIBRARY)
def test_through_the_library(case: str) -> None:
    says, act = LIBRARY[case]
    with pytest.raises(SecateurError) as caught:
        act()
    check(str(caught.value), says)
