"""From a model to a `Graph`, by `torch.export`.

Batch and spatial sizes stay open where the model allows it, so one capture serves any input size.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode

from secateur.core.errors import SecateurError
from secateur.core.running import evaluating
from secateur.runtime.graph import SCALARS, Graph, Node, Ref, refs

PASSING = {"dropout", "dropout_", "feature_dropout", "alpha_dropout", "detach", "alias", "lift_fresh_copy", "identity"}
"""Operations that change no value in evaluation."""
VIEWS = {
    "view", "reshape", "flatten", "slice", "select", "transpose", "permute", "expand", "unsqueeze", "squeeze", "chunk", "split",
    "split_with_sizes", "getitem", "unflatten", "t", "alias", "detach", "narrow", "unbind", "contiguous",
}  # fmt: skip
ASKED = "compiling a model for the sparse engine"


def capture(model: nn.Module, example: Sequence[Tensor]) -> Graph:
    """The operations of one forward of `model` in evaluation mode, for positional tensors like `example`.

    Raises `SecateurError` where `torch.export` cannot follow the model.
    """
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _export(model, tuple(example))
        if _mutates_views(program):
            program = program.run_decompositions({})
    return _read(program)


def _export(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
    # a batch of one would be taken for a constant
    wide = tuple(torch.cat([tensor, tensor]) if tensor.dim() and len(tensor) == 1 else tensor for tensor in example)
    auto = torch.export.Dim.AUTO
    spaces = tuple({0: auto} | ({2: auto, 3: auto} if tensor.dim() == 4 else {}) for tensor in wide)
    attempts: list[Callable[[], Any]] = [
        lambda: torch.export.export(model, wide, dynamic_shapes=spaces),
        lambda: torch.export.export(model, wide, dynamic_shapes=tuple({0: auto} for _ in wide)),
        lambda: torch.export.export(model, example),
    ]
    reason = ""
    for attempt in attempts:
        try:
            return attempt()
        except Exception as error:  # whatever the model's forward or the exporter raises
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
    raise SecateurError(ASKED, f"a model torch.export cannot follow ({reason})", "run it dense, or simplify its forward")


def _mutates_views(program: Any) -> bool:
    """Is a tensor changed in place while another name sees the same memory?"""
    for node in program.graph.nodes:
        if node.op != "call_function" or not _word(node).endswith("_") or _word(node) in PASSING:
            continue
        changed = node.args[0]
        if not isinstance(changed, FxNode) or changed.op != "call_function" or _word(changed) in VIEWS:
            return True
        if any(_word(user) in VIEWS for user in changed.users if user is not node):
            return True
    return False


def _word(node: FxNode) -> str:
    """ "relu_" of aten.relu_.default."""
    target = node.target
    return target._schema.name.split("::")[-1] if hasattr(target, "_schema") else getattr(target, "__name__", str(target))


def _read(program: Any) -> Graph:
    signature = program.graph_signature
    state = {**program.state_dict, **program.constants}
    names: dict[str, Any] = {}  # exported name -> our value: a Ref, or a number
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    nodes: list[Node] = []
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            names[node.name] = Ref(node.name)
            if node.name in stored:
                constants[node.name] = state[stored[node.name]].detach()
            else:
                inputs.append(node.name)
        elif node.op == "call_function":
            _add(node, names, constants, nodes)
        elif node.op == "output":
            kept = [
                value
                for value, spec in zip(node.args[0], signature.output_specs, strict=True)
                if spec.kind.name == "USER_OUTPUT"
            ]
            outputs = [names[value.name] if isinstance(value, FxNode) else value for value in kept]
    output = _plain(torch.utils._pytree.tree_unflatten(outputs, program.call_spec.out_spec))
    used = {name for node in nodes for name in node.inputs} | set(refs(output))
    return Graph(tuple(inputs), tuple(nodes), {name: value for name, value in constants.items() if name in used}, output)


def _plain(value: Any) -> Any:
    """Outputs as tuples, lists and dicts: the classes libraries return are dicts or tuples at heart."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (tuple, list)):
        return (list if type(value) is list else tuple)(_plain(item) for item in value)
    if isinstance(value, (Ref, int, float, bool, type(None))):
        return value
    raise SecateurError(ASKED, f"an output of type {type(value).__name__}", "return tensors, tuples, lists or dicts")


def _add(node: FxNode, names: dict[str, Any], constants: Mapping[str, Tensor], nodes: list[Node]) -> None:
    """Append what `node` computes, and note under which name its value is known."""

    def ours(value: Any) -> Any:
        if isinstance(value, FxNode):
            return names[value.name]
        if isinstance(value, (tuple, list)):
            return [ours(item) for item in value]
        return value

    word, args = _word(node), [ours(value) for value in node.args]
    named = {key: ours(value) for key, value in node.kwargs.items()}
    if word in PASSING or word == "_assert_tensor_metadata":
        names[node.name] = args[0]
        return
    made = _known(node, word.removesuffix("_"), args, named, constants) or _other(node, word, args, named)
    nodes.append(made)
    names[node.name] = Ref(made.name)
    if word.endswith("_") and not word.startswith("__") and isinstance(node.args[0], FxNode):
        changed = names[node.args[0].name]
        for name, value in names.items():  # whoever reads the changed tensor from here on reads the new value
            if value == changed:
                names[name] = Ref(made.name)


def _other(node: FxNode, word: str, args: list[Any], named: dict[str, Any]) -> Node:
    target: Any = node.target
    if target in SCALARS.values() or getattr(operator, getattr(target, "__name__", ""), None) is target:
        word = {"mul": "mul", "add": "add", "sub": "sub", "floordiv": "floordiv", "getitem": "getitem"}.get(target.__name__, "")
        if not word:
            raise SecateurError(ASKED, f"arithmetic on sizes by {target.__name__}", "run this model dense")
        text = f"operator.{word}"
    else:
        space, name = target._schema.name.split("::")
        text = f"{space}.{name.removesuffix('_') if _functional(target) else name}.{target._overloadname}"
    settings = {"target": text, "args": _frozen(args), "kwargs": _frozen(named)}
    source = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], FxNode) else None
    if word in ("pad", "constant_pad_nd") and isinstance(source, Tensor) and source.dim() == 4 and type(source.shape[1]) is int:
        settings["channels"] = source.shape[1]
    return Node(node.name, "torch", tuple(dict.fromkeys(refs([args, named]))), settings=settings)


def _functional(target: Any) -> bool:
    """Is this an in-place operation with a twin that is none?"""
    space, name = target._schema.name.split("::")
    twin = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    return name.endswith("_") and twin is not None and target._overloadname in twin.overloads()


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


def _pair(value: Any) -> tuple[int, int] | None:
    """(a, b) of a, [a] or [a, b]; None where sizes are not plain numbers."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    values = values * 2 if len(values) == 1 else values
    return (values[0], values[1]) if len(values) == 2 and all(type(item) is int for item in values) else None


def _known(node: FxNode, word: str, args: list[Any], named: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    """The operation in the engine's own terms, or None where it has none."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | named
    full = {argument.name: given.get(argument.name, argument.default_value) for argument in schema.arguments}
    reader = _READERS.get(word)
    first = full.get("input", full.get("self"))
    if reader is None or (word != "cat" and not (isinstance(first, Ref) and first.name not in constants)):
        return None
    return reader(node, full, constants)


def _constant(value: Any, constants: Mapping[str, Tensor]) -> Tensor | None:
    return constants.get(value.name) if isinstance(value, Ref) else None


def _layer(node: FxNode) -> str:
    """The module a node came from, as the user names it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack and stack[-1][0] else node.name


def _conv(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    weight, bias = _constant(a["weight"], constants), _constant(a["bias"], constants)
    stride, padding, dilation = (_pair(a[name]) for name in ("stride", "padding", "dilation"))
    if weight is None or (a["bias"] is not None and bias is None) or not (stride and padding and dilation):
        return None
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": a["groups"], "layer": _layer(node)}
    return Node(node.name, "conv", (a["input"].name,), {"weight": weight} | ({} if bias is None else {"bias": bias}), settings)


def _linear(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    weight, bias = _constant(a["weight"], constants), _constant(a["bias"], constants)
    if weight is None or (a["bias"] is not None and bias is None):
        return None
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return Node(node.name, "linear", (a["input"].name,), tensors, {"layer": _layer(node)})


def _batch_norm(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    mean, variance = _constant(a["running_mean"], constants), _constant(a["running_var"], constants)
    if mean is None or variance is None or a.get("training") is True:
        return None
    weight, bias = _constant(a["weight"], constants), _constant(a["bias"], constants)
    scale = (variance.double() + a["eps"]).rsqrt() * (1.0 if weight is None else weight.double())
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    return Node(node.name, "affine", (a["input"].name,), {"scale": scale, "shift": shift})


def _activation(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    kind = _word(node).removesuffix("_")
    settings: dict[str, Any] = {"activation": kind}
    if kind == "gelu" and a.get("approximate", "none") != "none":
        return None
    if kind in ("relu", "relu6", "hardtanh"):
        low, high = {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}.get(kind) or (a["min_val"], a["max_val"])
        settings = {"activation": "clamp", "low": float(low), "high": float(high)}
    return Node(node.name, "act", (a["self"].name,), settings=settings)


def _add_or_mul(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    other = a["other"]
    if not isinstance(other, Ref) or other.name in constants or a.get("alpha", 1) != 1:
        return None
    if not all(isinstance(value, FxNode) and isinstance(value.meta.get("val"), Tensor) for value in node.args[:2]):
        return None
    return Node(node.name, _word(node).removesuffix("_"), (a["self"].name, other.name))


def _max_pool(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    kernel, padding, stride = _pair(a["kernel_size"]), _pair(a["padding"]), _pair(a["stride"] or a["kernel_size"])
    if not (kernel and padding and stride) or _pair(a["dilation"]) != (1, 1):
        return None
    settings = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": bool(a["ceil_mode"])}
    return Node(node.name, "maxpool", (a["self"].name,), settings=settings)


def _avg_pool(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    kernel, padding, stride = _pair(a["kernel_size"]), _pair(a["padding"]), _pair(a["stride"] or a["kernel_size"])
    plain = not a["ceil_mode"] and a.get("divisor_override") is None and (a["count_include_pad"] or padding == (0, 0))
    if not (kernel and padding and stride and plain):
        return None
    return Node(node.name, "avgpool", (a["self"].name,), settings={"kernel": kernel, "stride": stride, "padding": padding})


def _adaptive(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    size = _pair(a["output_size"])
    return Node(node.name, "adaptive", (a["self"].name,), settings={"size": size}) if size else None


def _mean(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    source = node.args[0]
    dims = {dim % 4 for dim in a["dim"] or ()}
    if not isinstance(source, FxNode) or source.meta["val"].dim() != 4 or dims != {2, 3}:
        return None
    return Node(node.name, "adaptive", (a["self"].name,), settings={"size": (1, 1), "flat": not a["keepdim"]})


def _flatten(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    source = node.args[0]
    whole = isinstance(source, FxNode) and source.meta["val"].dim() == 4 and node.meta["val"].dim() == 2
    same = whole and node.meta["val"].shape[0] == source.meta["val"].shape[0]
    return Node(node.name, "flatten", (a["self"].name,)) if same else None


def _cat(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    parts = a["tensors"]
    if a.get("dim", 0) != 1 or node.meta["val"].dim() != 4 or any(part.name in constants for part in parts):
        return None
    return Node(node.name, "cat", tuple(part.name for part in parts))


_READERS: dict[str, Callable[[FxNode, dict[str, Any], Mapping[str, Tensor]], Node | None]] = {
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda node, a, constants: None,
    "relu": _activation, "relu6": _activation, "hardtanh": _activation, "hardswish": _activation, "silu": _activation,
    "sigmoid": _activation, "hardsigmoid": _activation, "gelu": _activation,
    "add": _add_or_mul, "mul": _add_or_mul,
    "max_pool2d": _max_pool, "avg_pool2d": _avg_pool, "adaptive_avg_pool2d": _adaptive, "mean": _mean,
    "flatten": _flatten, "view": _flatten, "reshape": _flatten,
    "cat": _cat,
}  # fmt: skip
