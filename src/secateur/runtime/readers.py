"""How ATen operations read in the engine's own terms: one short function each, None where the engine has no such operation.

`a`: the operation's arguments by name, values as `Ref`; `constants`: weights by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node as FxNode

from secateur.runtime.graph import Node, Ref


def word_of(node: FxNode) -> str:
    """ "relu_" of aten.relu_.default."""
    target = node.target
    return target._schema.name.split("::")[-1] if hasattr(target, "_schema") else getattr(target, "__name__", str(target))


def source(node: FxNode) -> Tensor | None:
    """What the first argument of `node` looked like when it was captured; None where it was no tensor."""
    first = node.args[0] if node.args else None
    value = first.meta.get("val") if isinstance(first, FxNode) else None
    return value if isinstance(value, Tensor) else None


def _pair(value: Any) -> tuple[int, int] | None:
    """(a, b) of a, [a] or [a, b]; None where sizes are not plain numbers."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    values = values * 2 if len(values) == 1 else values
    return (values[0], values[1]) if len(values) == 2 and all(type(item) is int for item in values) else None


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
    kind = word_of(node).removesuffix("_")
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
    return Node(node.name, word_of(node).removesuffix("_"), (a["self"].name, other.name))


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
    image = source(node)
    dims = {dim % 4 for dim in a["dim"] or ()}
    if image is None or image.dim() != 4 or dims != {2, 3}:
        return None
    return Node(node.name, "adaptive", (a["self"].name,), settings={"size": (1, 1), "flat": not a["keepdim"]})


def _flatten(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    image, made = source(node), node.meta["val"]
    whole = image is not None and image.dim() == 4 and made.dim() == 2 and made.shape[0] == image.shape[0]
    return Node(node.name, "flatten", (a["self"].name,)) if whole else None


def _cat(node: FxNode, a: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    parts = a["tensors"]
    if a.get("dim", 0) != 1 or node.meta["val"].dim() != 4 or any(part.name in constants for part in parts):
        return None
    return Node(node.name, "cat", tuple(part.name for part in parts))


READERS: dict[str, Callable[[FxNode, dict[str, Any], Mapping[str, Tensor]], Node | None]] = {
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
