"""A disk that is full for real: a small tmpfs where it can be mounted (root), else a limit on the size of files."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

LARGE = 64 << 20
FILE_LIMIT = 32 << 10  # more than the job that a stage is given, less than the timeline of a run


class SmallDisk:
    """A folder on a disk of few bytes; ``message`` is what the system says when it is full."""

    message = "No space left on device"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def limit(self, pid: int) -> None:
        """Nothing to do: the disk itself is small."""

    def grow(self) -> None:
        """From now on there is room."""
        _run("mount", "-o", f"remount,size={LARGE}", str(self._folder))


class FileLimit(SmallDisk):
    """Where nothing can be mounted: processes that may write files of FILE_LIMIT bytes at most."""

    message = "File too large"

    def limit(self, pid: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))

    def grow(self) -> None:
        """The next process has no limit."""


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """``folder`` on a disk of ``size`` bytes (a multiple of a page's), or as little as can be had without root."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or not _mounted(folder, size):
        yield FileLimit(folder)
        return
    try:
        yield SmallDisk(folder)
    finally:
        _run("umount", str(folder))


def _mounted(folder: Path, size: int) -> bool:
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "llmpq-bench-faults", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=10)
