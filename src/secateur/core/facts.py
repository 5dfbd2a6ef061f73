"""Counted and timed numbers about one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """None means "not measured"; nothing is guessed.

    params: entries of all parameters. macs: multiply-accumulates of one forward at the example's batch size (papers say
    FLOPs and mean these). bytes: size of the saved file, or of all tensors where nothing was saved. peak_memory: bytes
    the forward holds at most, weights excluded. latency_ms: median wall time of one forward. accuracy: what the user's
    metric returned, a share between 0 and 1 for the built-in one. loss: mean loss on the same data. nonzeros: entries of
    parameters that are not zero. sparse_macs: MACs less those with a zero weight.
    """

    params: int | None = None
    macs: int | None = None
    bytes: int | None = None
    peak_memory: int | None = None
    latency_ms: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    nonzeros: int | None = None
    sparse_macs: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Only what is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}
