"""Operations that act entry by entry: their tensors share every dimension, up to broadcasting."""

from __future__ import annotations

from secateur.graph import dims as d
from secateur.graph.dims import Expr
from secateur.graph.record import Node
from secateur.graph.state import NOWHERE, Origin, State, Value, flat_tensors

ZERO_KEEPING = """
relu relu_ relu6 relu6_ gelu gelu_ silu silu_ mish mish_ tanh tanh_ neg neg_ abs abs_ sqrt sqrt_ leaky_relu
leaky_relu_ elu elu_ celu celu_ selu selu_ hardtanh hardtanh_ hardswish hardswish_ softshrink hardshrink _prelu_kernel
clone contiguous alias detach detach_ _to_copy dropout dropout_ native_dropout square square_ sin sin_ sinh erf erf_
expm1 log1p atan sign round round_ floor floor_ ceil ceil_ trunc nan_to_num lift_fresh rrelu rrelu_with_noise
alpha_dropout feature_dropout feature_alpha_dropout positive asin tan zero_ zeros_like real
fake_quantize_per_tensor_affine lift lift_fresh_copy copysign bernoulli_ asinh atanh erfinv frac sgn
_conj conj_physical resolve_conj resolve_neg _neg_view imag angle
""".split()
OTHER_UNARY = """
sigmoid sigmoid_ exp exp_ log log_ log2 log10 cos cos_ cosh rsqrt rsqrt_ reciprocal reciprocal_ softplus hardsigmoid
hardsigmoid_ log_sigmoid_forward threshold threshold_ clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ pow pow_
logical_not logical_not_ bitwise_not isnan isinf isfinite ones_like full_like rand_like randn_like empty_like fill_
fill erfc acos bernoulli randint_like normal_ uniform_ exponential_ digamma lgamma i0 exp2 logit acosh exp2_ sinc
signbit
""".split()
ADD = """
add add_ sub sub_ rsub maximum minimum fmax fmin hypot
""".split()
MUL = """
mul mul_ logical_and logical_and_ bitwise_and bitwise_and_ addcmul_
""".split()
DIV = """
div div_ true_divide floor_divide floor_divide_ fmod fmod_ remainder remainder_ bitwise_left_shift bitwise_right_shift
""".split()
OTHER_BINARY = """
eq ne lt le gt ge eq_ ne_ lt_ le_ gt_ ge_ where masked_fill masked_fill_ atan2 logical_or logical_or_ logical_xor
bitwise_or bitwise_or_ bitwise_xor lerp lerp_ addcmul addcdiv xlogy float_power __and__ __or__ __xor__
logaddexp logaddexp2 polar complex
""".split()


def broadcast(state: State, values: list[Value], rank: int) -> tuple[list[Expr], list[Origin]]:
    """Dims of the result of broadcasting `values`; equal dims are united."""
    result: list[Expr] = []
    origin: list[Origin] = []
    for back in range(rank, 0, -1):
        here = [(v.dims[-back], v.origin[-back]) for v in values if len(v.dims) >= back]
        wide = [pair for pair in here if d.size(pair[0]) != 1] or here
        for expr, _ in wide[1:]:
            if expr is not wide[0][0]:
                state.unite(wide[0][0], expr)
        result.append(wide[0][0])
        origin.append(frozenset().union(*(o for _, o in wide)) if all(v.is_weight for v in values) else NOWHERE)
    return result, origin


def _operands(state: State, node: Node) -> list[Value]:
    return [state.of(t) for t in flat_tensors((node.args, node.kwargs)) if t.dim() or t is node.args[0]]


def unary(state: State, node: Node) -> None:
    """Values change, dims stay; zero goes to zero."""
    _elementwise(state, node, all(v.clean for v in _operands(state, node)[:1]))


def unary_other(state: State, node: Node) -> None:
    """Values change, dims stay; zero goes elsewhere, except through a clamp or power that keeps it."""
    clean = False
    if node.op.startswith("clamp"):
        low, high = node.arg(1, "min"), node.arg(2, "max")
        low, high = (None, low) if node.op.startswith("clamp_max") else (low, high)
        numbers = all(b is None or isinstance(b, (int, float)) for b in (low, high))
        clean = numbers and (low is None or low <= 0) and (high is None or high >= 0)
    elif node.op.startswith("pow"):
        clean = isinstance(node.arg(1, "exponent"), (int, float)) and node.arg(1, "exponent") > 0
    _elementwise(state, node, clean and all(v.clean for v in _operands(state, node)[:1]))


def add(state: State, node: Node) -> None:
    """A sum is zero where both sides are."""
    sides = [node.args[0], node.arg(1, "other")]
    clean = all(state.of(s).clean if hasattr(s, "shape") else s == 0 for s in sides)
    _elementwise(state, node, clean)


def mul(state: State, node: Node) -> None:
    """A product is zero where one side is."""
    _elementwise(state, node, any(v.clean for v in _operands(state, node)))


def div(state: State, node: Node) -> None:
    """A quotient is zero where the numerator is."""
    _elementwise(state, node, hasattr(node.args[0], "shape") and state.of(node.args[0]).clean)


def other(state: State, node: Node) -> None:
    """Nothing is known about zeros."""
    _elementwise(state, node, False)


def loss(state: State, node: Node) -> None:
    """A distance entry by entry; where it is reduced to a number, over all units."""
    if not node.outputs[0].dim():
        state.freeze([expr for value in _operands(state, node) for expr in value.dims], f"{node.op} reduces over it")
        return state.set([])
    _elementwise(state, node, False)


def _elementwise(state: State, node: Node, clean: bool) -> None:
    values = _operands(state, node)
    for number, out in enumerate(node.outputs):
        dims, origin = broadcast(state, values, out.dim())
        state.set(dims, output=number, clean=clean, origin=origin)


def copy_(state: State, node: Node) -> None:
    """The target takes the source's entries, and its dims."""
    target, source = state.of(node.args[0]), state.of(node.args[1])
    dims, _ = broadcast(state, [target, source], len(target.dims))
    state.set(dims, clean=source.clean and target.clean)


def glu(state: State, node: Node) -> None:
    """Two halves of one dimension, multiplied."""
    value, dim = state.of(node.args[0]), node.arg(1, "dim", -1)
    try:
        first, second = d.split(value.dims[dim], node.args[0].shape[dim] // 2)
    except d.Conflict:
        return state.opaque("its halves are multiplied")
    state.unite(first, second)
    dims = list(value.dims)
    dims[dim] = first
    state.set(dims, clean=value.clean)


RULES = (
    dict.fromkeys(ZERO_KEEPING, unary)
    | dict.fromkeys(OTHER_UNARY, unary_other)
    | dict.fromkeys(ADD, add)
    | dict.fromkeys(MUL, mul)
    | dict.fromkeys(DIV, div)
    | dict.fromkeys(OTHER_BINARY, other)
    | dict.fromkeys(("huber_loss", "mse_loss", "smooth_l1_loss", "soft_margin_loss"), loss)
    | {"copy_": copy_, "copy": copy_, "glu": glu}
)
