"""One training run on one process, or on several that Accelerate started.

A single process needs nothing of Accelerate and pays nothing for it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from secateur.core.errors import SecateurError


@dataclass(frozen=True)
class Share:
    """This process's share of the work: `model` is what a forward calls, `rank` of `processes`."""

    model: nn.Module
    rank: int = 0
    processes: int = 1
    accelerator: Any = None

    def part(self, batch: Any) -> Any:
        """Every `processes`-th sample of a batch, from `rank` on."""
        if self.processes == 1:
            return batch
        if isinstance(batch, Tensor):
            return batch[self.rank :: self.processes]
        if isinstance(batch, Mapping):
            return {key: self.part(value) for key, value in batch.items()}
        return type(batch)(self.part(value) for value in batch) if isinstance(batch, (list, tuple)) else batch

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, averaged over the processes."""
        if self.accelerator is None:
            torch.autograd.backward(loss)
        else:
            self.accelerator.backward(loss)

    def sum(self, value: Tensor) -> Tensor:
        """`value` added up over the processes."""
        return value if self.accelerator is None else self.accelerator.reduce(value, reduction="sum")


def share(model: nn.Module) -> Share:
    """The share of this process. Under `accelerate launch` or `torchrun` the model is wrapped for gradient averaging.

    Raises `SecateurError` where several processes were started and Accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share(model)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise SecateurError("training on several processes", "no Accelerate", "pip install accelerate") from error
    begun = dist.is_available() and dist.is_initialized()
    accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    if not begun:
        atexit.register(_end_group)
    wrapped = accelerator.prepare_model(model)
    return Share(wrapped, accelerator.process_index, accelerator.num_processes, accelerator)


def _end_group() -> None:
    """Joins the threads of the process group: one that still lets go of tensors while Python ends would abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
