"""Allocators: scores and what shall remain, to a plan."""

from secateur.allocate.budget import budget
from secateur.allocate.costs import activation_bytes, file_bytes, latency_ms
from secateur.allocate.measured import measured
from secateur.allocate.partition import partition
from secateur.allocate.ranked import global_
from secateur.allocate.threshold import threshold
from secateur.allocate.uniform import uniform

__all__ = [
    "activation_bytes",
    "budget",
    "file_bytes",
    "global_",
    "latency_ms",
    "measured",
    "partition",
    "threshold",
    "uniform",
]
