"""Counted and timed numbers: parameters, MACs, bytes, activation memory and latency of one forward."""

from secateur.measure.count import facts
from secateur.measure.latency import compare, latency
from secateur.measure.memory import peak_memory
from secateur.measure.rank import rank_facts
from secateur.measure.table import measure_table

__all__ = ["compare", "facts", "latency", "measure_table", "peak_memory", "rank_facts"]
