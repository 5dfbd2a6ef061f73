"""Python objects named on a command line or in a recipe: the user's own models, data and metrics.

This runs the user's own file, on purpose. Files that travel (plans, weights) never name one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.io.files import read_bytes
from secateur.io.vision import torchvision

_FORMS = "file.py:function, package.module:function, torchvision:NAME or timm:NAME"


def resolve(spec: str) -> Any:
    """What `spec` names: a function, class or value of a file or module, or a builder of torchvision or timm.

    The forms are "file.py:function", "package.module:function", "torchvision:NAME" and "timm:NAME". Modules beside the
    file are found as when the file is run; a file is run once for all names taken from it. Builders give untrained
    networks and download nothing unless asked to.
    Raises `SecateurError` where the form, the file or the name is wrong (with the nearest name), or the file fails.
    """
    if not isinstance(spec, str) or ":" not in spec or spec.startswith(":") or spec.endswith(":"):
        hint = f"write {spec}:NAME with the name inside it" if str(spec).endswith(".py") else f"write {_FORMS}"
        raise SecateurError(repr(spec), "no name after a colon", hint)
    place, _, name = spec.rpartition(":")
    if place == "torchvision":
        return _torchvision(name, spec)
    if place == "timm" or spec.startswith("timm:"):
        return _timm(spec.removeprefix("timm:"), spec)
    value: Any = _file(place, spec) if place.endswith(".py") else _module(place, spec)
    for part in name.split("."):
        if not hasattr(value, part):
            known = [word for word in vars(value) if not word.startswith("_")] if hasattr(value, "__dict__") else []
            raise SecateurError(spec, f"no {part!r} in {_short(place)}", _hint(part, known))
        value = getattr(value, part)
    return value


def build(spec: str, **arguments: Any) -> nn.Module:
    """The model `spec` names: what `resolve` finds, called with `arguments` unless it is a model already.

    Raises `SecateurError` as `resolve` does, where the call fails (with the line), and where it gives no `nn.Module`.
    """
    value = resolve(spec)
    if not isinstance(value, nn.Module):
        value = call(value, spec, **arguments)
    if not isinstance(value, nn.Module):
        raise SecateurError(
            spec, f"an object of type {type(value).__name__} in place of a model", "return a torch.nn.Module from it"
        )
    return value


def call(function: Callable[..., Any], spec: str, *values: Any, **arguments: Any) -> Any:
    """What the user's `function`, named `spec` in errors, returns.

    Raises `SecateurError` with the line of the user's file where it fails.
    """
    if not callable(function):
        raise SecateurError(spec, f"an object of type {type(function).__name__}, which cannot be called", "name a function")
    return _guarded(lambda: function(*values, **arguments), spec, f"give {spec} what it needs, or mend it")


def _file(place: str, spec: str) -> ModuleType:
    """The module of a user's file, run once as long as the file does not change."""
    path = Path(place).expanduser()
    source = read_bytes(path, "Python file")
    path = path.resolve()
    # a name of its own per content: two files called net.py are two modules
    name = f"{path.stem}_{zlib.crc32(str(path).encode() + source):08x}"
    if name in sys.modules:
        return sys.modules[name]
    described = importlib.util.spec_from_file_location(name, path)
    if described is None or described.loader is None:
        raise SecateurError(spec, f"{place!r}, which Python cannot import", "give a .py file")
    module = importlib.util.module_from_spec(described)
    sys.modules[name] = module
    folder, loader = str(path.parent), described.loader
    sys.path.insert(0, folder)
    try:
        _guarded(lambda: loader.exec_module(module), spec, "mend the file, or install what it needs")
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        # last, not first, from here on: what functions import later is found, and nothing installed is hidden
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
    return module


def _module(place: str, spec: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    if not all(part.isidentifier() for part in place.split(".")):
        raise SecateurError(spec, f"{place!r}, neither a .py file nor a module", f"write {_FORMS}")
    try:
        return _guarded(lambda: importlib.import_module(place), spec, "mend that module, or install what it needs")
    except SecateurError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{place}.".startswith(f"{cause.name}."):
            raise SecateurError(spec, f"no module {cause.name!r}", f"install it, or write {_FORMS}") from cause
        raise


def _guarded(run: Callable[[], Any], spec: str, do: str) -> Any:
    """What `run` returns; an exception of the user's code becomes one sentence with its line."""
    try:
        return run()
    except SecateurError:
        raise
    # a script that parses arguments or exits when imported raises SystemExit
    except (Exception, SystemExit) as error:
        raise SecateurError(spec, _failure(error), do) from error


def _failure(error: BaseException) -> str:
    """Kind, place in the user's code and message of `error`, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    file, line, text = (own[-1].filename, own[-1].lineno, str(error)) if own else ("", 0, str(error))
    if isinstance(error, SyntaxError) and error.lineno:
        file, line, text = error.filename or "", error.lineno, error.msg
    place = f" at {os.path.basename(file)} line {line}" if line else ""
    text = " ".join(text.split())[:200]
    return f"{type(error).__name__}{place}{': ' if text else ''}{text}"


def _torchvision(name: str, spec: str) -> Callable[..., nn.Module]:
    models = torchvision().models
    if name not in models.list_models():
        raise SecateurError(spec, f"no network {name!r} in torchvision", _hint(name, models.list_models()))
    return models.get_model_builder(name)


def _timm(name: str, spec: str) -> Callable[..., nn.Module]:
    torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise SecateurError(spec, f"no module {error.name!r} installed", "pip install 'secateur[vision]'") from error
    if ":" in name or not timm.is_model(name):
        raise SecateurError(spec, f"no network {name!r} in timm", _hint(name, timm.list_models()))
    return partial(timm.create_model, name, pretrained=False)


def _hint(name: str, known: list[str]) -> str:
    """The nearest name; all of them only where they are few."""
    hint = nearest(name, known) if known else "define it there"
    return hint if hint.startswith("did") or len(known) <= 12 else "check the name"


def _short(place: str) -> str:
    return repr(place if len(place) <= 80 else f"...{place[-77:]}")
