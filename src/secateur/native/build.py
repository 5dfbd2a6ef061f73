"""Builds the kernels with a plain call of the C++ compiler, where the package came without them.

The wheel brings a library; this serves source trees, and machines that got a compiler later. The result stays in the cache
folder under the digest of its sources, so it is built once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "kernels"
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden")
X86 = {
    "path_avx512": ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx512cd", "-mavx2", "-mfma", "-mprfchw"),
    "path_avx2": ("-mavx2", "-mfma", "-mprfchw"),
}
X86["path_avx512_bf16"] = (*X86["path_avx512"], "-mavx512bf16")
EXACT = "-ffp-contract=off"
"""No fused multiply-adds: the kernels of int8 give the same bits by every instruction set."""
X86["bytes_avx2"] = (*X86["path_avx2"], EXACT)
X86["bytes_avx512"] = (*X86["path_avx512"], EXACT)
X86["bytes_avx512_vnni"] = X86["bytes_avx512_vnni_half"] = (*X86["path_avx512"], "-mavx512vnni", EXACT)
"""Flags of the files that serve one instruction set; CMakeLists.txt has the same."""
PLAIN: dict[str, tuple[str, ...]] = {
    "path_portable": (), "bytes_portable": (EXACT,), "pool": (), "dispatch": (), "lowrank": (), "program": (EXACT,)
}  # fmt: skip
NEWER = {
    "SECATEUR_HAS_BF16": ("path_avx512_bf16",),
    "SECATEUR_HAS_VNNI": ("bytes_avx512_vnni", "bytes_avx512_vnni_half"),
}
"""What tells the others that files are there which an older compiler cannot build."""
LONGEST = 300
"""Seconds one compiler call may take."""


class Unbuilt(Exception):
    """Why there is no library, as the end of a sentence."""


def digest() -> str:
    """SHA-256 over names and contents of the sources: which library belongs to them."""
    lines = [
        f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(SOURCES.iterdir()) if path.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def cache_folder() -> Path:
    """Where built libraries and measured choices stay: SECATEUR_CACHE, or secateur/ in the user's cache folder."""
    named = os.environ.get("SECATEUR_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def compiler() -> list[str]:
    """The command of the C++ compiler. Raises `Unbuilt` where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name.split()[0])):
            return [found, *name.split()[1:]]
    raise Unbuilt("there is no C++ compiler (c++, g++ or clang++) to build its kernels")


def build(target: Path, extra: tuple[str, ...] = ()) -> None:
    """Write the library to `target`, whole or not at all. `extra`: more flags, for all files and the link.

    Raises `Unbuilt` where there is no compiler or it fails.
    """
    command, source = compiler(), digest()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    jobs = PLAIN | (X86 if x86 else {})
    define = [f'-DSECATEUR_SOURCE="{source}"', *(["-DSECATEUR_X86"] if x86 else [])]
    with tempfile.TemporaryDirectory() as folder:
        for word, names in NEWER.items():
            if x86 and _takes(command, jobs[names[0]], folder):
                define.append(f"-D{word}")
            else:  # an older compiler: bf16 and int8 are computed by the other instructions
                jobs = {name: flags for name, flags in jobs.items() if name not in names}

        def compile_one(name: str) -> str:
            out = f"{folder}/{name}.o"
            _call([*command, *COMMON, *define, *jobs[name], *extra, "-c", str(SOURCES / f"{name}.cpp"), "-o", out])
            return out

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, jobs))
        made = f"{folder}/engine.so"
        _call([*command, "-shared", *extra, *objects, "-o", made, "-lpthread"])
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            waiting = target.with_name(f"{target.name}.{os.getpid()}")
            shutil.copy(made, waiting)
            waiting.replace(target)
        except OSError as error:
            raise Unbuilt(f"its kernels cannot be written to {target} ({error.strerror})") from error


def _takes(command: list[str], flags: tuple[str, ...], folder: str) -> bool:
    """Does the compiler know these flags?"""
    probe = Path(folder) / "probe.cpp"
    probe.write_text("int probe;\n")
    try:
        _call([*command, *flags, "-c", str(probe), "-o", f"{folder}/probe.o"])
    except Unbuilt:
        return False
    return True


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unbuilt(f"the C++ compiler did not run ({error})") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise Unbuilt(f"the C++ compiler failed ({first.strip()[:160]})")
