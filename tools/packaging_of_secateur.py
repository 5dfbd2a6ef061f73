"""Build backend: scikit-build-core for wheels and source packages; editable installs are one line that names src/.

scikit-build-core's own editable modes either put an import hook before PYTHONPATH, so that no second checkout can be tried in
the same environment, or build inside the source tree. The kernels of an editable install are built on first use
(secateur/native/build.py), which also follows every change of their sources.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scikit_build_core import build as scikit
from scikit_build_core.build import (  # noqa: F401
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

SOURCE = Path(__file__).resolve().parents[1] / "src"


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Nothing: no kernels are built."""
    return []


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Write a wheel that holds the package's description and the path of src/; return its name."""
    with TemporaryDirectory() as folder:
        made = scikit.prepare_metadata_for_build_editable(folder, config_settings)
        about = Path(folder) / made
        files = {f"{made}/{path.relative_to(about)}": path.read_bytes() for path in sorted(about.rglob("*")) if path.is_file()}
    files["secateur.pth"] = f"{SOURCE}\n".encode()
    files[f"{made}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: secateur\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files.pop(f"{made}/RECORD", None)
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{made}/RECORD"] = "\n".join([*lines, f"{made}/RECORD,,", ""]).encode()
    name = f"{made.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
    return name


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
