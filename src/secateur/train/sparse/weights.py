"""Which tensors a sparse training acts on. Shape legend: O outputs, I inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.measure.layers import is_turned

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor by name: does a convolution read it, and is it (I, O), as of transformers' Conv1D, and not (O, I, ...)?"""

    name: str
    tensor: Tensor
    convolution: bool
    inputs_first: bool = False

    def turned(self, values: Tensor) -> Tensor:
        """`values` of the tensor's shape with outputs first, (O, I, ...), and from there back: a view."""
        return values.mT if self.inputs_first else values

    @property
    def outputs_first(self) -> Weight:
        """The weight as a view (O, I, ...) of the same numbers, without its gradient."""
        return replace(self, tensor=self.tensor.detach().mT, inputs_first=False) if self.inputs_first else self


def weights_of(
    model: nn.Module, dense: Sequence[str] = (), fits: Callable[[Tensor], bool] = lambda _: True
) -> tuple[Weight, ...]:
    """Weights of convolutions, linear layers (transformers' Conv1D is one) and attention, in the order of the modules.

    A tied weight counts once. Embeddings, norms and biases stay dense, and so does what matches a shell pattern of `dense` (by
    name of the tensor or its module), what is tied to either, as the head of a language model to its embedding, and what
    `fits` refuses, which is asked with outputs first. Raises `SecateurError` where nothing is left, or a pattern hits nothing.
    """
    found: dict[int, Weight] = {}
    hit: set[str] = set()
    held = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))}
    for name, module in model.named_modules():
        turned = is_turned(module)
        if not turned and not isinstance(module, (*_CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)):
            continue
        for last in _ATTENTION if isinstance(module, nn.MultiheadAttention) else ("weight",):
            tensor, full = getattr(module, last, None), f"{name}.{last}" if name else last
            patterns = [pattern for pattern in dense if fnmatchcase(full, pattern) or fnmatchcase(name, pattern)]
            hit.update(patterns)
            if isinstance(tensor, nn.Parameter):
                held.update({id(tensor)} if patterns else ())
                found.setdefault(id(tensor), Weight(full, tensor, isinstance(module, _CONVOLUTIONS), turned))
    if missed := [pattern for pattern in dense if pattern not in hit]:
        raise SecateurError(f"dense={missed[0]!r}", "no layer of that name", "name layers as model.named_modules() does")
    left = tuple(weight for key, weight in found.items() if key not in held and fits(weight.outputs_first.tensor))
    if not left:
        raise SecateurError("sparse training", "no weight that may become sparse", "take patterns out of dense=")
    return left
