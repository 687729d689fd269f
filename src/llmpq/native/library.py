"""kernels.c as a shared library: compiled once for this processor and this source, and kept in the user's cache for all processes."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
DISABLED = "LLMPQ_NATIVE"
"""Environment variable: 0 leaves the work to torch."""

_COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: the kernels say themselves where the order of a sum does not matter, and NaN must come through.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-fPIC", "-fopenmp")
_TIMEOUT_S = 120.0


class NativeMissingError(Exception):
    """Why the kernels cannot be had here, in one line."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels; NativeMissingError where they are switched off, or cannot be compiled or loaded."""
    if os.environ.get(DISABLED, "1") == "0":
        raise NativeMissingError(f"switched off by {DISABLED}=0")
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise NativeMissingError("no C compiler is installed (gcc, for instance)")
    try:
        path = _cache() / f"kernels-{_digest(compiler)}.so"
        if not path.is_file():
            _compile(compiler, path)
        _share_openmp()
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home directory
        raise NativeMissingError(f"{compiler} did not compile {SOURCE.name}: {_first_error(error)}") from None


@functools.cache
def available() -> bool:
    try:
        library()
    except NativeMissingError:
        return False
    return True


def _cache() -> Path:
    """What lies there is executed: NativeMissingError where anybody else may write."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "llmpq"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise NativeMissingError(f"{folder}: somebody else may write there; chmod 700 it, or set XDG_CACHE_HOME to one of your own")
    return folder


def _digest(compiler: str) -> str:
    """Of all that the machine code depends on: the source, the flags, the compiler and the processor (a home may be shared by several)."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_TIMEOUT_S).stdout
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = [next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags")]
    content = [SOURCE.read_bytes(), " ".join(_FLAGS).encode(), compiler.encode(), version, *(line.encode() for line in processor)]
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="compiling-") as folder:
        compiled, linked = Path(folder) / "kernels.o", Path(folder) / target.name
        # Linked without OpenMP: its calls go to the runtime that torch has loaded. A second one would fight it for the cores.
        for command in ([*_FLAGS, "-c", str(SOURCE), "-o", str(compiled)], ["-shared", str(compiled), "-o", str(linked), "-lm"]):
            subprocess.run([compiler, *command], capture_output=True, check=True, timeout=_TIMEOUT_S)
        os.replace(linked, target)


def _share_openmp() -> None:
    """Make the symbols of torch's own OpenMP runtime visible to what is loaded after it."""
    import torch

    places = [Path(torch.__file__).parent / "lib", Path(torch.__file__).parent.parent / "torch.libs"]
    for path in (found for place in places for found in sorted(place.glob("libgomp*.so*"))):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _first_error(error: Exception) -> str:
    said = getattr(error, "stderr", None) or b""
    lines = [line for line in said.decode(errors="replace").splitlines() if "error" in line.lower()]
    return (lines or [str(error)])[0]
