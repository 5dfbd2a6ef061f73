"""An architecture known by the names and shapes of its tensors; values do not matter."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from secateur.core.errors import SecateurError, nearest
from secateur.core.factor import Factor, factored
from secateur.core.mask import Mask
from secateur.core.plan import Keep, Plan, Shapes
from secateur.core.split import Split, split_shapes


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its dotted name, parameters first; a tied tensor comes under each of its names."""
    return ((name, table[last]) for name, table, last in holders(model))


def holders(model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor], str]]:
    """Every parameter, then every buffer, as (dotted name, the table of its module, its key there).

    PyTorch's `named_parameters` climbs through a generator per level for each module, which in a deep network is most of
    the cost; here modules are listed once. Raises `SecateurError` where a lazy module has not run yet.
    """
    modules: list[tuple[str, nn.Module]] = []

    def visit(prefix: str, module: nn.Module) -> None:
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            found = f"{prefix.rstrip('.') or 'a module'} ({type(module).__name__}), which has no shapes before a first forward"
            raise SecateurError("the tensors of this model", found, "run the model once on an example")
        modules.append((prefix, module))
        for name, child in module._modules.items():
            if child is not None:
                visit(f"{prefix}{name}.", child)

    visit("", model)
    for which in ("_parameters", "_buffers"):
        for prefix, module in modules:
            table = getattr(module, which)
            for last, tensor in table.items():
                if tensor is not None:
                    yield prefix + last, table, last


def fingerprint(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors(model)}


def remade(model: nn.Module) -> set[str]:
    """Names of buffers the state dict leaves out: a forward may make them anew, in another shape."""
    return {
        f"{path}.{name}".lstrip(".") for path, module in model.named_modules() for name in module._non_persistent_buffers_set
    }


def mismatches(expected: Shapes, model: nn.Module | Shapes, *, touched: Container[str] = ()) -> list[str]:
    """One line per tensor of `expected` that `model` lacks or has in another shape, and per tensor it has beyond.

    Buffers that forwards make anew may differ, unless they are among those `touched` by a cut.
    """
    loose = set() if isinstance(model, Mapping) else {name for name in remade(model) if name not in touched}
    found = model if isinstance(model, Mapping) else fingerprint(model)
    found = {name: shape for name, shape in found.items() if name not in loose}
    lines: list[str] = []
    for name, shape in expected.items():
        if name in loose:
            continue
        if name not in found:
            hint = nearest(name, list(found))
            lines.append(f"no tensor {name!r}" + (f" ({hint})" if hint.startswith("did") and not lines else ""))
        elif tuple(found[name]) != tuple(shape):
            lines.append(f"{name} of shape {list(found[name])} where the plan has {list(shape)}")
    return lines + [f"a tensor {name!r} the plan does not know" for name in found if name not in expected]


def survivors(step: Keep, lengths: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], np.ndarray]:
    """(tensor, dim) to the ascending entries that stay; axes that share a dim each take their own away."""
    masks: dict[tuple[str, int], np.ndarray] = {}
    for cut in step.cuts:
        dropped = np.asarray(cut.dropped, dtype=np.int64)
        if not len(dropped):
            continue
        for slot in cut.slots:
            place = (slot.tensor, slot.dim)
            if place not in masks:
                masks[place] = np.ones(lengths[place], dtype=bool)
            masks[place][slot.of(dropped).reshape(-1)] = False
    return {place: np.flatnonzero(mask) for place, mask in masks.items()}


def shapes_after(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape once all steps are done."""
    shapes = {name: tuple(shape) for name, shape in plan.fingerprint.items()}
    for step in plan.steps:
        if isinstance(step, Factor):
            for product in step.products:
                shapes = factored(shapes, product)
        elif isinstance(step, Split):
            shapes = split_shapes(shapes, step)
        elif not isinstance(step, Mask):
            for (name, dim), kept in survivors(real_slots(step), lengths_of(shapes)).items():
                shapes[name] = (*shapes[name][:dim], len(kept), *shapes[name][dim + 1 :])
    return shapes


def lengths_of(shapes: Shapes) -> dict[tuple[str, int], int]:
    """(tensor, dim) to the number of entries along it."""
    return {(name, dim): n for name, shape in shapes.items() for dim, n in enumerate(shape)}


def real_slots(step: Keep) -> Keep:
    """`step` with the slots that lie in tensors, attributes left out."""
    return Keep(tuple(replace(cut, slots=tuple(slot for slot in cut.slots if slot.dim >= 0)) for cut in step.cuts))
