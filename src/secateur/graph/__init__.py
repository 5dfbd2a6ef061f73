"""Model to axes."""

from secateur.graph.custom import relate, rule
from secateur.graph.rules import RULES, Rule
from secateur.graph.trace import trace

__all__ = ["RULES", "Rule", "relate", "rule", "trace"]
