"""Allocators: scores and what shall remain, to a plan."""

from secateur.allocate.budget import budget
from secateur.allocate.partition import partition
from secateur.allocate.ranked import global_
from secateur.allocate.threshold import threshold
from secateur.allocate.uniform import uniform

__all__ = ["budget", "global_", "partition", "threshold", "uniform"]
