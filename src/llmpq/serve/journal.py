"""Finished requests, kept on disk the moment they finish, so that a run that dies loses nothing that was done.

One JSON line per request after a first line with the key: digests of everything that decides the tokens (plan, requests, weights,
settings). The file name carries the digest of the key, so a journal of another plan is never mixed in or overwritten. The journal is
not a declared output of the workflow, which deletes those of a failed job.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmpq import artifacts
from llmpq.errors import ServeError

_PREFIX = "journal-"


class Journal:
    """The journal of one (plan, requests) in ``folder``; use as a context manager, it holds a lock on its file.

    ``finished`` maps the id of a request to its record. Raises ServeError when another run holds the journal, when the file is damaged
    anywhere but in its last line (a torn last line is cut off: its request will be served again), and when the disk is full.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = dict(key)
        self.path = folder / f"{_PREFIX}{artifacts.digest(self.key)[:16]}.jsonl"
        self.finished: dict[Any, dict[str, Any]] = {}
        for other in sorted(folder.glob(f"{_PREFIX}*.jsonl")):
            if other != self.path:
                say(f"{other}: ignored, it belongs to another plan, other requests or other weights")
        self._file = self._open()
        if self.finished:
            say(f"{self.path}: already finished: {len(self.finished)} of the requests; only the missing ones are served")

    def _open(self) -> BinaryIO:
        file = self.path.open("ab+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ServeError(f"{self.path} is in use: another process serves the same plan and requests") from None
        try:
            self._load(file)
        except BaseException:
            file.close()
            raise
        return file

    def _load(self, file: BinaryIO) -> None:
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        whole = 0
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a kill or a full disk
            try:
                self._accept(json.loads(line), number)
            except (ValueError, KeyError, TypeError):
                raise ServeError(f"{self.path}: line {number} is damaged; delete the file to serve all requests again") from None
            whole += len(line)
        file.truncate(whole)
        if whole == 0:
            self._write(file, [{"journal": "llmpq.serve", "version": 1, "key": self.key}])

    def _accept(self, record: dict[str, Any], number: int) -> None:
        if number == 1:
            if record["key"] != self.key:
                raise ValueError("another key under this file name")
            return
        if not all(isinstance(token, int) for token in record["tokens"]):
            raise ValueError("tokens are integers")
        self.finished.setdefault(record["id"], record)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add finished requests (``id``, ``tokens``, …); on return they are on disk."""
        new = [dict(record) for record in records if record["id"] not in self.finished]
        self._write(self._file, new)
        self.finished.update({record["id"]: record for record in new})

    def _write(self, file: BinaryIO, records: list[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n" for record in records)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise ServeError(f"{self.path}: a finished request could not be kept: {error.strerror}") from None

    def remove(self) -> None:
        """Delete the file: its results are now in requests.jsonl. The folder goes too, where no other journal is in it."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
