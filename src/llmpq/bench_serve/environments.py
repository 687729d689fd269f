"""The environments of other engines: each its own, built from a pinned list by whoever needs it first; what cannot be built is skipped."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from llmpq.errors import LlmpqError, first_line

INSTALL_TIMEOUT_S = 3600.0
_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


class PeerMissing(LlmpqError):  # noqa: N818  not a fault: the row says why it is empty
    """An engine that cannot be had here; the message says why, in one line."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment ``folder`` with exactly what ``requirements`` lists: a frozen list, which pip installs without resolving."""

    folder: Path
    requirements: Path

    @property
    def python(self) -> Path:
        return (self.folder / "bin" / "python").absolute()

    def ready(self) -> Path:
        """Its interpreter, once everything is installed; PeerMissing where that cannot be done."""
        marker = self.folder / ".ready"
        try:
            wanted = self.requirements.read_text(encoding="utf-8")
            if self.python.exists() and marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
                return self.python
            print(f"Installing {self.requirements} into {self.folder} (some minutes) …", file=sys.stderr, flush=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._run([sys.executable, "-m", "venv", str(self.folder)])
            self._run([str(self.python), *_PIP, "install", "--no-deps", "-r", str(self.requirements)])
            marker.write_text(wanted, encoding="utf-8")
        except OSError as error:
            raise PeerMissing(f"its environment {self.folder} cannot be made: {first_line(error)}") from None
        return self.python

    def _run(self, command: list[str]) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise PeerMissing(f"{self.requirements} was not installed within {INSTALL_TIMEOUT_S:.0f} s") from None
        if done.returncode:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["nothing was said"]
            reason = next((line for line in reversed(said) if "ERROR" in line), said[-1])
            raise PeerMissing(f"{self.requirements} cannot be installed: {reason.strip()[:200]}")
