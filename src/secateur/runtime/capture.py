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
from secateur.runtime.readers import READERS, source, word_of

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
        if node.op != "call_function" or not word_of(node).endswith("_") or word_of(node) in PASSING:
            continue
        changed = node.args[0]
        if not isinstance(changed, FxNode) or changed.op != "call_function" or word_of(changed) in VIEWS:
            return True
        if any(word_of(user) in VIEWS for user in changed.users if user is not node):
            return True
    return False


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

    word, args = word_of(node), [ours(value) for value in node.args]
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
    image = source(node)
    if word in ("pad", "constant_pad_nd") and image is not None and image.dim() == 4 and type(image.shape[1]) is int:
        settings["channels"] = image.shape[1]
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


def _known(node: FxNode, word: str, args: list[Any], named: dict[str, Any], constants: Mapping[str, Tensor]) -> Node | None:
    """The operation in the engine's own terms, or None where it has none."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | named
    full = {argument.name: given.get(argument.name, argument.default_value) for argument in schema.arguments}
    reader = READERS.get(word)
    first = full.get("input", full.get("self"))
    if reader is None or (word != "cat" and not (isinstance(first, Ref) and first.name not in constants)):
        return None
    return reader(node, full, constants)
