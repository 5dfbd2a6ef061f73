"""Which tensors a sparse training acts on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from secateur.core.errors import SecateurError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor by name; `convolution` where a convolution reads it."""

    name: str
    tensor: Tensor
    convolution: bool


def weights_of(
    model: nn.Module, dense: Sequence[str] = (), fits: Callable[[Tensor], bool] = lambda _: True
) -> tuple[Weight, ...]:
    """Weights of convolutions, linear layers and attention, in the order of the modules; a tied one once.

    Embeddings, norms and biases stay dense, and so does what matches a shell pattern of `dense` (by name of the tensor or
    its module) or is refused by `fits`. Raises `SecateurError` where nothing is left, or a pattern matches nothing.
    """
    found: dict[int, Weight] = {}
    hit: set[str] = set()
    for name, module in model.named_modules():
        kinds = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        own = kinds if isinstance(module, nn.MultiheadAttention) else ("weight",)
        if not isinstance(module, (*_CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)):
            continue
        for last in own:
            tensor, full = getattr(module, last, None), f"{name}.{last}" if name else last
            patterns = [pattern for pattern in dense if fnmatchcase(full, pattern) or fnmatchcase(name, pattern)]
            hit.update(patterns)
            if isinstance(tensor, nn.Parameter) and not patterns and fits(tensor):
                found.setdefault(id(tensor), Weight(full, tensor, isinstance(module, _CONVOLUTIONS)))
    if missed := [pattern for pattern in dense if pattern not in hit]:
        raise SecateurError(f"dense={missed[0]!r}", "no layer of that name", "name layers as model.named_modules() does")
    if not found:
        raise SecateurError("sparse training", "no weight that may become sparse", "take patterns out of dense=")
    return tuple(found.values())
