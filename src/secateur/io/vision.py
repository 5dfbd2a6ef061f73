"""torchvision, also where its compiled operators do not fit the installed torch: its networks need none of them."""

from __future__ import annotations

from types import ModuleType

from secateur.core.errors import SecateurError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def torchvision() -> ModuleType:
    """The package torchvision. Its networks and transforms work; box operators need a build that fits torch.

    Raises `SecateurError` where it is not installed or does not import.
    """
    import importlib

    asked = "torchvision"
    try:
        return importlib.import_module(asked)
    except ModuleNotFoundError as error:
        do = "pip install 'secateur[vision]'"
        raise SecateurError(asked, f"no module {error.name!r} installed", do) from error
    except RuntimeError as error:
        # its C++ library was built for another torch and did not load; the import then fails at registering a shape rule
        if "operator torchvision::" not in str(error):
            raise SecateurError(asked, f"an import that fails ({error})", "install the build that fits your torch") from error
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", _SCHEMA)
    try:
        return importlib.import_module(asked)
    except (RuntimeError, ImportError) as error:
        raise SecateurError(asked, f"an import that fails ({error})", "install the build that fits your torch") from error
