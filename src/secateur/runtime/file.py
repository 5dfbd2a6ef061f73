"""One file for a compiled model: safetensors, with the graph as JSON in its header, zeros left out of sparse weights.

A sparse tensor `name` of the graph is stored as `name.values` (its non-zeros, in order) and `name.places` (bytes, as in
core/sparse_code.py). Loading runs no code from the file: it names operations of fixed lists, and nothing else.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.core import sparse_code
from secateur.core.errors import SecateurError
from secateur.core.strict import parse
from secateur.io.container import has_metadata, pack, tensors_of, verified
from secateur.io.files import atomic, read_bytes, require_own, shown
from secateur.runtime.coding import Range
from secateur.runtime.compiled import PRECISIONS, CompiledModel
from secateur.runtime.graph import Graph, Node, Ref, refs
from secateur.runtime.operations import allowed
from secateur.runtime.placing import KINDS, shapes_of

VERSION = 1
SPARSE = 0.3
"""Share of zeros from which a tensor is stored without them."""
LARGEST = 3.4e38
"""Above what a float32 can be."""
AGAIN = "copy it again, or export it again with secateur"
TENSORS = {"conv": ({"weight"}, {"bias"}), "linear": ({"weight"}, {"bias"}), "affine": ({"scale", "shift"}, set())}
"""Tensors an operation must and may have; the others have none."""
PAIRS = {"conv": {"stride", "padding", "dilation"}, "maxpool": {"kernel", "stride", "padding"},
         "avgpool": {"kernel", "stride", "padding"}, "adaptive": {"size"}}  # fmt: skip
READS = {"conv": (1, 2), "linear": (1, 2), "affine": (1, 1), "add": (2, 2), "mul": (2, 2), "act": (1, 1), "maxpool": (1, 1),
         "avgpool": (1, 1), "adaptive": (1, 1), "flatten": (1, 1), "cat": (1, 10_000), "torch": (0, 10_000)}  # fmt: skip
"""Operations, and how many values each reads."""


def save(path: str | os.PathLike[str], model: CompiledModel, example: tuple[Tensor, ...]) -> None:
    """Write `model` to one file, whole or not at all; `example` tells which inputs it was made for.

    Raises `SecateurError` where the graph holds an operation such a file may not name, the file cannot be written, or `path`
    holds something else than an exported model.
    """
    asked = f"exporting {shown(path)}"
    require_own(path, "exported model")
    graph = model.graph
    tensors: dict[str, Tensor] = {}
    nodes = []
    for place, node in enumerate(graph.nodes):
        if node.op == "torch" and not allowed(node.settings["target"]):
            raise SecateurError(
                asked, f"the operation {node.settings['target']}", "use the compiled model in this process instead"
            )
        for key, value in node.tensors.items():
            tensors |= _thin(f"{place}.{key}", value)
        settings = {key: _encoded(value, asked) for key, value in node.settings.items()}
        own = {key: list(value.shape) for key, value in node.tensors.items()}
        nodes.append({"name": node.name, "op": node.op, "inputs": list(node.inputs), "tensors": own, "settings": settings})
    for name, value in graph.constants.items():
        tensors[f"constant.{name}"] = value
    text = {
        "version": VERSION, "inputs": list(graph.inputs), "nodes": nodes, "output": _encoded(graph.output, asked),
        "precision": model.precision, "ranges": {name: list(known) for name, known in model.coding.ranges.items()},
        "example": [[list(value.shape), str(value.dtype).removeprefix("torch.")] for value in example],
    }  # fmt: skip
    head, body = pack(tensors, {"format": "pt", "secateur": "1", "engine": json.dumps(text, allow_nan=False)}, asked)
    with atomic(path) as file:
        file.write(head)
        file.write(body)


def load(path: str | os.PathLike[str], threads: int = 0, *, others: bool = True) -> CompiledModel:
    """The model in a file `save` wrote, ready to be called; `threads` and `others` as of `compile`. No code from the file runs.

    Raises `SecateurError` where the file is damaged or holds what such a file may not.
    """
    model = read(path, threads)[0]
    model.others = others
    return model


def read(path: str | os.PathLike[str], threads: int = 0) -> tuple[CompiledModel, tuple[Tensor, ...]]:
    """The model in a file, and inputs of the size it was made for: zeros."""
    asked = f"loading {shown(path)}"
    data = read_bytes(path, "engine file")
    header = verified(data, asked)
    if "engine" not in header.metadata:
        raise SecateurError(asked, "a file without an engine's graph", "write one with secateur export --to sparse")
    table = parse(header.metadata["engine"], asked)
    try:
        if table["version"] != VERSION:
            raise SecateurError(asked, f"version {str(table['version'])[:20]} of engine files", "upgrade secateur")
        graph = _graph(table, tensors_of(data, asked))
        example = tuple(torch.zeros(_sizes(shape), dtype=_dtype(kind)) for shape, kind in table["example"])
        values = shapes_of(graph, example)
        precision = table.get("precision", "float32")  # files of older versions name none
        if type(precision) is not str or precision not in PRECISIONS:
            raise ValueError(f"the precision {str(precision)[:40]!r}")
        ranges = _ranges(table["ranges"], values) if precision == "int8" else {}
    except SecateurError as error:
        raise SecateurError(asked, error.found if error.asked == "an engine file" else str(error), AGAIN) from error
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        RuntimeError,
        OverflowError,
        NotImplementedError,
    ) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise SecateurError(asked, f"a graph that does not fit together ({reason})", AGAIN) from error
    return CompiledModel(graph, threads, precision, ranges), example


def is_engine_file(path: str | os.PathLike[str]) -> bool:
    """Does this file hold a compiled model? Only its header is read."""
    return has_metadata(path, "engine")


def _thin(name: str, value: Tensor) -> dict[str, Tensor]:
    """The tensor, without its zeros where they are many."""
    value = value.detach().cpu()
    flat = value.reshape(-1)
    places = flat.nonzero().reshape(-1)
    if len(places) > (1 - SPARSE) * max(len(flat), 1):
        return {name: value}
    code = sparse_code.encode(places.numpy(), len(flat))
    return {f"{name}.values": flat[places], f"{name}.places": torch.frombuffer(bytearray(code or b"\0"), dtype=torch.uint8)}


def _thick(name: str, shape: tuple[int, ...], stored: Mapping[str, Tensor]) -> Tensor:
    if name in stored:
        if tuple(stored[name].shape) != shape:
            raise ValueError(f"tensor {name} has another shape")
        return stored[name]
    values, size = stored[f"{name}.values"], math.prod(shape)
    if values.dim() != 1 or stored[f"{name}.places"].dtype != torch.uint8:
        raise ValueError(f"tensor {name} has no list of values")
    if size > 2**31 or size > 10_000 * max(len(values), 1000):
        raise ValueError(f"tensor {name} is said to have {size:,} entries")
    code = stored[f"{name}.places"].numpy().tobytes()
    code = b"" if len(values) in (0, size) and code == b"\0" else code
    flat = torch.zeros(size, dtype=values.dtype)
    flat[torch.from_numpy(sparse_code.decode(code, len(values), size).copy())] = values
    return flat.reshape(shape)


def _sizes(shape: Any) -> tuple[int, ...]:
    if (
        type(shape) is not list
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
        or math.prod(shape) > 2**33
    ):
        raise ValueError(f"{str(shape)[:60]} for a shape")
    return tuple(shape)


def _dtype(word: Any) -> torch.dtype:
    found = getattr(torch, word, None) if type(word) is str else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"no dtype {str(word)[:40]!r}")
    return found


_OTHERS = (torch.memory_format, torch.layout)


def _encoded(value: Any, asked: str) -> Any:
    """Arguments as JSON: what JSON has no form for is an object with one key."""
    if isinstance(value, Ref):
        return {"value": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, list):
        return {"list": [_encoded(item, asked) for item in value]}
    if isinstance(value, tuple):
        return [_encoded(item, asked) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[key, _encoded(item, asked)] for key, item in value.items()]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    if isinstance(value, _OTHERS):
        return {"torch": str(value).removeprefix("torch.")}
    raise SecateurError(asked, f"an argument of type {type(value).__name__}", "use the compiled model in this process instead")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("an argument that is none")
    kind, inside = next(iter(value.items()))
    if kind == "value" and type(inside) is str:
        return Ref(inside)
    if kind == "float" and inside in ("inf", "-inf", "nan"):
        return float(inside)
    if kind == "list":
        return [_decoded(item) for item in inside]
    if kind == "dict":
        return {str(key): _decoded(item) for key, item in inside}
    if kind == "dtype":
        return _dtype(inside)
    if kind == "device" and inside == "cpu":
        return torch.device("cpu")
    if kind == "torch" and isinstance(found := getattr(torch, str(inside), None), _OTHERS):
        return found
    raise ValueError(f"an argument of the kind {str(kind)[:40]!r}")


def _graph(table: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Graph:
    inputs = tuple(_word(name) for name in table["inputs"])
    constants = {name.removeprefix("constant."): value for name, value in stored.items() if name.startswith("constant.")}
    known, nodes = {*inputs, *constants}, []
    for place, entry in enumerate(table["nodes"]):
        node = _node(place, entry, stored)
        for name in {*node.inputs, *refs([node.settings.get("args"), node.settings.get("kwargs")])}:
            if name not in known or (node.op == "torch" and name not in node.inputs):
                raise ValueError(f"operation {node.name[:40]!r} reads a value that is not there")
        if node.name in known:
            raise ValueError(f"two values named {node.name[:40]!r}")
        known.add(node.name)
        nodes.append(node)
    output = _decoded(table["output"])
    if not refs(output) or any(name not in known for name in refs(output)):
        raise ValueError("an output that is not computed")
    return Graph(inputs, tuple(nodes), constants, output)


def _ranges(table: Any, values: Mapping[str, Any]) -> dict[str, Range]:
    """What the 8 bits of each float32 value stand for; 0 is always among it."""
    found = {}
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or not value.numel():
            continue
        low, high = table[name]
        if type(low) is not float or type(high) is not float or not -LARGEST < low <= 0.0 <= high < LARGEST:
            raise ValueError(f"a range of {name[:40]!r} that is none")
        found[name] = low, high
    return found


def _word(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a name that is no text")
    return value


def _node(place: int, entry: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Node:
    name, op, inputs = _word(entry["name"]), entry["op"], tuple(_word(item) for item in entry["inputs"])
    settings = {_word(key): _decoded(value) for key, value in entry["settings"].items()}
    if op not in READS or not READS[op][0] <= len(inputs) <= READS[op][1]:
        raise ValueError(f"operation {str(op)[:40]!r} of {len(inputs)} values")
    must, may = TENSORS.get(op, (set(), set()))
    if not must <= set(entry["tensors"]) <= must | may:
        raise ValueError(f"an operation {op} without its tensors, or with others")
    tensors = {key: _thick(f"{place}.{key}", _sizes(shape), stored) for key, shape in entry["tensors"].items()}
    if any(value.dtype != torch.float32 for value in tensors.values()):
        raise ValueError(f"weights of {name[:40]!r} that are not float32")
    for key in PAIRS.get(op, ()):
        pair, least = settings[key], 0 if key in ("padding", "size") else 1
        if type(pair) is not tuple or len(pair) != 2 or not all(type(n) is int and least <= n < 2**15 for n in pair):
            raise ValueError(f"{str(pair)[:40]} for {key}")
    if op == "conv" and not (type(settings["groups"]) is int and settings["groups"] > 0):
        raise ValueError("groups that are no number")
    _require_activation(op, settings)
    if op == "torch":
        _require_operation(settings)
    return Node(name, op, inputs, tensors, settings)


def _require_activation(op: str, settings: Mapping[str, Any]) -> None:
    kind = settings.get("activation")
    if kind is None and op != "act":
        return
    if kind not in KINDS or (kind == "clamp" and not all(type(settings.get(key)) is float for key in ("low", "high"))):
        raise ValueError(f"the activation {str(kind)[:40]!r}")


def _require_operation(settings: Mapping[str, Any]) -> None:
    fits = type(settings["args"]) is tuple and type(settings["kwargs"]) is dict
    if not (fits and allowed(_word(settings["target"]))):
        raise ValueError(f"the operation {str(settings['target'])[:60]!r}, which such a file may not name")
