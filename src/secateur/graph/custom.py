"""Rules for the user's own operations: a line that names dims, or a function."""

from __future__ import annotations

from typing import Any

from secateur.core.errors import SecateurError
from secateur.graph.rules import RULES, Rule
from secateur.graph.rules.named import Zero, relate


def rule(op: Any, how: str | Rule, *, zero: Zero = None) -> None:
    """Teach traces what `op` does to the dims of its tensors; from then on its axes can be cut.

    `op` is "library::name", `torch.ops.library.name` or what `torch.library.custom_op` returned. `how` is a line as in
    `relate`, with `zero`, or a function `(state, node) -> None` as in `secateur.graph.rules`.

    Raises `SecateurError` for a line that cannot be read.
    """
    RULES[_name(op)] = relate(how, zero=zero) if isinstance(how, str) else how


def _name(op: Any) -> str:
    """The name a recorded operation carries: without "aten::" and without its overload."""
    name = op if isinstance(op, str) else getattr(op, "_qualname", None) or getattr(op, "_qualified_op_name", None)
    if name is None and hasattr(op, "name"):
        name = op.name() if callable(op.name) else op.name
    if not isinstance(name, str) or not name:
        raise SecateurError("a rule for an operation", repr(op), 'name it as in "mylib::scale"')
    lead, colons, rest = name.partition("::")
    short = (rest if colons else lead).partition(".")[0]
    return short if lead in ("aten", name) else f"{lead}::{short}"


__all__ = ["relate", "rule"]
