"""One table: ATen operation to how the dims of its tensors relate.

A rule is `rule(state, node) -> None`: it unites dims that are the same units, freezes what cannot be cut, and says what
each output is made of. An operation without a rule costs compression, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable

from secateur.graph.record import Node
from secateur.graph.rules import contraction, index, join, named, norm, pointwise, recurrent, reduce, resample, shape
from secateur.graph.state import State

Rule = Callable[[State, Node], None]
RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **contraction.RULES,
    **norm.RULES,
    **reduce.RULES,
    **shape.RULES,
    **join.RULES,
    **index.RULES,
    **recurrent.RULES,
    **named.RULES,
    **resample.RULES,
}
