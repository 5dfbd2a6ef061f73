"""What decides a measured number beside the model: the machine and the versions on it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import secateur


def versions() -> dict[str, str]:
    """Versions of secateur, PyTorch and Python."""
    return {"secateur": secateur.__version__, "torch": torch.__version__, "python": platform.python_version()}


def hardware(device: torch.device | str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """CPU name, cores, threads and device; `threads` are PyTorch's unless given."""
    target = torch.device(device)
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else str(target)
    return {"cpu": _cpu(), "cores": os.cpu_count(), "threads": threads or torch.get_num_threads(), "device": name}


def record() -> dict[str, Any]:
    """The command this process was started with, the versions and the machine: the head of a result file."""
    return {"command": command(), "versions": versions(), "hardware": hardware()}


def command() -> str:
    """How this process was started, as someone else would type it: "secateur ...", or "python bench/x.py ..."."""
    script, words = Path(sys.argv[0] or "-"), [word for word in sys.argv[1:] if word]
    if script.stem == "secateur" or script.parts[-2:] == ("secateur", "__main__.py"):
        return shlex.join(["secateur", *words])
    near = script.absolute().is_relative_to(Path.cwd())
    return shlex.join(["python", str(script.absolute().relative_to(Path.cwd())) if near else script.name, *words])


def _cpu() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
