"""Model to axes."""

from secateur.graph.rules import RULES, Rule
from secateur.graph.trace import trace

__all__ = ["RULES", "Rule", "trace"]
