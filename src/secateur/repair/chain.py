"""Several repairs in turn."""

from __future__ import annotations

from torch import nn

from secateur.core.protocols import Batches, Repair
from secateur.core.restore import restoring
from secateur.core.running import repeatable


def chain(*repairs: Repair) -> Repair:
    """One repair that does all of `repairs`, first to last: ``chain(partial(least_squares, plan=plan), batchnorm)``.

    Where one of them fails, what those before it did is undone.
    """

    def repair(before: nn.Module, after: nn.Module, batches: Batches) -> None:
        batches = repeatable(batches)
        with restoring(after):
            for each in repairs:
                each(before, after, batches)

    return repair
