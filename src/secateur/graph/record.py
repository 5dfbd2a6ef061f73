"""Run a model on the meta device and write down every ATen operation with its tensors, module and source line.

Compared with `torch.export` (non-strict) this needs a fraction of the time, keeps no graph module, and accepts every
forward that runs; `docs/decisions.md` has the measurement. Operations that ATen would take apart (linear, matmul,
attention, recurrent layers) are recorded whole, because their meaning is lost in the pieces.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.core.running import flat
from secateur.graph.execute import all_meta, convolved, devices, execute, packed, recurrent
from secateur.surgery import is_rms_norm

F = nn.functional
NORM = ("input", "weight", "bias", "running_mean", "running_var")
FUNCTIONAL_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training")
WHOLE: dict[Any, str] = {
    F.linear: "linear",
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    **dict.fromkeys((F.rms_norm, torch.rms_norm), "rms_norm"),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), "layer_norm"),
    **dict.fromkeys((F.group_norm, torch.group_norm), "group_norm"),
    **dict.fromkeys((F.instance_norm, torch.instance_norm), "instance_norm"),
    **dict.fromkeys((F.batch_norm, torch.batch_norm), "batch_norm"),
    torch.lstm: "lstm",
    torch.gru: "gru",
    **dict.fromkeys((torch.rnn_tanh, torch.rnn_relu), "rnn"),
    torch.lstm_cell: "lstm_cell",
    torch.gru_cell: "gru_cell",
    **dict.fromkeys((torch.rnn_tanh_cell, torch.rnn_relu_cell), "rnn_cell"),
    torch.channel_shuffle: "channel_shuffle",
    torch.bilinear: "bilinear",
    torch.einsum: "einsum",
    **dict.fromkeys((torch.tensor_split, Tensor.tensor_split), "tensor_split"),
    **dict.fromkeys((torch.hsplit, Tensor.hsplit), "hsplit"),
    **dict.fromkeys((torch.vsplit, Tensor.vsplit), "vsplit"),
    **dict.fromkeys((torch.dsplit, Tensor.dsplit), "dsplit"),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), "matmul"),
}
"""Functions recorded whole, by the ATen name of their rule."""
SAME_SHAPE = {"batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm"}
"""On the meta device these are skipped: PyTorch's own shape functions for them cost milliseconds each."""
ACTIVATIONS = set("relu hardtanh hardswish hardsigmoid silu gelu elu leaky_relu sigmoid tanh mish softplus _softmax".split())
"""The same for these, below the functions: a clamp alone takes four milliseconds through PyTorch's reference code."""
PACKING = {"_pack_padded_sequence", "_pad_packed_sequence"}
RECURRENT = {"lstm", "gru", "rnn"}
SIZES = {Tensor.shape.__get__, Tensor.size, Tensor.__len__, Tensor.numel}  # type: ignore[attr-defined]
"""How a forward looks at sizes."""
PICKS = {torch.take_along_dim, Tensor.take_along_dim, F.conv1d, F.conv2d, F.conv3d}
"""These look at the devices of their tensors themselves (convolutions where numbers are complex)."""
TORCH = os.path.dirname(torch.__file__) + os.sep
HERE = os.path.dirname(__file__) + os.sep


@dataclass
class Node:
    """One operation: `op` is its name without "aten::" and overload, tensors stay in `args`, `kwargs` and `outputs`."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    module: str
    source: str
    shapes: tuple[tuple[int, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        self.shapes = tuple(tuple(out.shape) for out in self.outputs)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


class _Dispatch(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if self.recorder.moving:
            return func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name.rstrip("_") in ACTIVATIONS and args[0].is_meta:
            out = args[0] if name.endswith("_") else torch.empty_like(args[0])
        elif name in PACKING and args[0].is_meta and (out := packed(name, args)) is not None:
            pass
        elif name != "convolution" or (out := convolved(args)) is None:
            out = execute(func, name, args, kwargs or {})
        if not self.recorder.inside:
            self.recorder.add(name, args, kwargs or {}, out)
        return out


class Recorder(TorchFunctionMode):
    """Collects `nodes` while active; `paths` maps id(module) to its dotted path."""

    def __init__(self, paths: dict[int, str], on_node: Callable[[Node], None] | None = None) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.paths = paths
        self.stack: list[str] = [""]
        self.inside = 0
        self.moving = False
        self.attempt: tuple[str, Any] = ("", ())
        """Name and arguments of the function called last."""
        self.on_node = on_node
        self.looks = False
        self.looked: list[Tensor] = []
        """Tensors whose sizes were looked at since the last operation, by code outside PyTorch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not torch.is_autocast_enabled("cpu"):
            return self._called(func, args, kwargs)
        with torch.autocast("cpu", enabled=False):  # it would convert tensors with values, and leave those without
            return self._called(func, args, kwargs)

    def _called(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        if func in SIZES:
            if not self.inside and not sys._getframe(2).f_code.co_filename.startswith((TORCH, HERE)):
                self.looks = True
                self.looked.append(args[0])
            return func(*args, **(kwargs or {}))
        if func in PICKS and all(devices(args)):
            self.moving = True
            args, kwargs = all_meta(args, kwargs or {})
            self.moving = False
        name = WHOLE.get(func)
        if not self.inside:
            self.attempt = (getattr(func, "__name__", ""), (args, kwargs or {}))
        if name is None or self.inside or (name == "einsum" and len(args) != 3):  # of more than two: its products
            return func(*args, **(kwargs or {}))
        if name in SAME_SHAPE and args and args[0].is_meta:
            require_fit(name, args, kwargs or {})
            self.inside += 1
            out: Any = torch.empty_like(args[0])
            self.inside -= 1
        elif name in RECURRENT and isinstance(args[3], (list, tuple)) and args[0].is_meta:  # packed: its sizes come second
            self.inside += 1
            out = recurrent(args)
            self.inside -= 1
            args = (args[0], *args[2:])
        else:
            out = self._uncut(func, args, kwargs or {})
        if func in (F.batch_norm, F.instance_norm):  # the functional spelling orders its arguments differently
            named = {**dict(zip(FUNCTIONAL_NORM, args, strict=False)), **(kwargs or {})}
            args, kwargs = tuple(named.get(key) for key in NORM), {"training": func is F.batch_norm and named.get("training")}
        self.add(name, args, kwargs or {}, out)
        return out

    def _uncut(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `func` without recording its pieces."""
        self.inside += 1
        try:
            if all(devices([*args, *kwargs.values()])):
                self.moving = True
                args, kwargs = all_meta(args, kwargs)
                self.moving = False
            return func(*args, **kwargs)
        finally:
            self.inside -= 1

    def add(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Record one operation."""
        outputs = (out,) if isinstance(out, Tensor) else tuple(o for o in flat(out) if isinstance(o, Tensor))
        node = Node(op, args, kwargs, outputs, self.stack[-1], source_line())
        self.nodes.append(node)
        if self.on_node:
            self.on_node(node)
        self.looked.clear()


def require_fit(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `ValueError`, as PyTorch would, where a norm is told other sizes than its input has."""
    x = args[0]
    told: Any = args[1] if len(args) > 1 else kwargs.get("normalized_shape", kwargs.get("num_groups"))
    trailing = name in ("layer_norm", "rms_norm")
    sizes = tuple(x.shape[-len(told) :]) if trailing else tuple(x.shape[1:2])
    wrong = tuple(told) != sizes if trailing else name == "group_norm" and x.shape[1] % told
    if wrong or any(tuple(t.shape) != sizes for t in flat((args[1:], kwargs)) if isinstance(t, Tensor)):
        raise ValueError(f"{name} of other sizes than its input's, {list(x.shape)}")


def source_line() -> str:
    """The innermost line outside PyTorch and this package: "file.py:12"."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((TORCH, HERE)) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "unknown"


@contextmanager
def recording(model: nn.Module, on_node: Callable[[Node], None] | None = None) -> Iterator[Recorder]:
    """Record what runs in the block; module paths are those of `model`."""
    paths = {id(module): name for name, module in model.named_modules()}
    recorder = Recorder(paths, on_node)

    whole = {id(module) for module in model.modules() if is_rms_norm(module)}

    def enter(module: nn.Module, _: Any) -> None:
        recorder.stack.append(paths.get(id(module), recorder.stack[-1]))
        recorder.inside += id(module) in whole

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in whole:
            recorder.inside -= 1
            if not recorder.inside and isinstance(out, Tensor):
                weight = next(module.parameters())
                recorder.add("rms_norm", (args[0], list(weight.shape), weight), {}, out)
        recorder.stack.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    try:
        with torch.no_grad(), recorder, _Dispatch(recorder):
            yield recorder
    finally:
        before.remove()
        after.remove()
