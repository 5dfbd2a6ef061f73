"""The axes inside branches, without those that a residual sum couples."""

from __future__ import annotations

from secateur.core.axes import Axes

REASON = "several layers write it one after another, as on a residual stream"


def inner(axes: Axes) -> Axes:
    """The same axes with those fixed whose units several layers write one after another.

    A layer beside another that reads the same axis (the two halves of a gated unit), a depthwise convolution, and queries, keys
    and values of heads write nothing of a sum. Li et al., 2017, section 3.3, cut the first convolution of residual blocks.
    """
    reads: dict[str, set[str]] = {}
    for axis in axes:
        for slot in axis.readers():
            reads.setdefault(slot.tensor, set()).add(axis.name)
    coupled = set()
    for axis in axes.free:
        own = {
            slot.tensor.rpartition(".")[0] for slot in axis.slots if slot.role == "count" and slot.tensor.endswith(".groups")
        }
        writers = {slot.tensor for slot in axis.writers() if len(axes.fingerprint[slot.tensor]) > 1}
        writers = {name for name in writers if name.rpartition(".")[0] not in own}
        sources = {frozenset(reads.get(name, {name})) for name in writers}
        if axis.kind == "width" or (axis.kind == "channel" and len(sources) > 1):
            coupled.add(axis.name)
    frozen = tuple(axis.freeze(REASON) if axis.name in coupled else axis for axis in axes)
    return Axes(frozen, axes.fingerprint, axes.terms, axes.notes)
