"""Finished requests, kept on disk the moment they finish, so that a run that dies loses nothing that was done.

One JSON line per request after a first line with the key: digests of everything that decides the tokens (plan, requests, weights,
settings). The file name carries the digest of the key, so a journal of another plan is never mixed in or overwritten. The journal is
not a declared output of the workflow, which deletes those of a failed job.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ServeError

_PREFIX = "journal-"


class Finished(Mapping[Any, dict[str, Any]]):
    """Records of finished requests by id, in the order in which they finished; only their places in the file are in memory."""

    def __init__(self, path: Path) -> None:
        self._places: dict[Any, int] = {}
        self._file = path.open("rb")

    def add(self, identifier: Any, place: int) -> None:
        """The record of ``identifier`` begins at byte ``place``; the first one counts."""
        self._places.setdefault(identifier, place)

    def __getitem__(self, identifier: Any) -> dict[str, Any]:
        self._file.seek(self._places[identifier])
        record: dict[str, Any] = json.loads(self._file.readline())
        return record

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._places

    def __iter__(self) -> Iterator[Any]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Close the file: ids are known, records no more."""
        self._file.close()


class Journal:
    """The journal of one (plan, requests) in ``folder``; use as a context manager, it holds a lock on its file.

    ``finished`` maps the id of a request to its record. Raises ServeError when another run holds the journal, when the file is damaged
    anywhere but in its last line (a torn last line is cut off: its request will be served again), and when the disk is full.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = dict(key)
        self.path = folder / f"{_PREFIX}{artifacts.digest(self.key)[:16]}.jsonl"
        for other in sorted(folder.glob(f"{_PREFIX}*.jsonl")):
            if other != self.path:
                say(f"{other}: ignored, it belongs to another plan, other requests or other weights")
        self._file = self.path.open("ab", buffering=0)  # what a full disk did not take is not kept for later
        try:
            self._lock()
            self.finished = Finished(self.path)
            self._load()
        except BaseException:
            self._file.close()
            raise
        if self.finished:
            say(f"{self.path}: already finished: {len(self.finished)} of the requests; only the missing ones are served")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ServeError(f"{self.path} is in use: another process serves the same plan and requests") from None

    def _load(self) -> None:
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break  # torn by a kill or a full disk
                try:
                    self._accept(json.loads(line), number, whole)
                except (ValueError, KeyError, TypeError):
                    raise ServeError(f"{self.path}: line {number} is damaged; delete the file to serve all requests again") from None
                whole += len(line)
        self._file.truncate(whole)
        if whole == 0:
            self._write(_line({"journal": "llmpq.serve", "version": 1, "key": self.key}))

    def _accept(self, record: dict[str, Any], number: int, place: int) -> None:
        if number == 1:
            if record["key"] != self.key:
                raise ValueError("another key under this file name")
            return
        if not all(isinstance(token, int) for token in record["tokens"]):
            raise ValueError("tokens are integers")
        self.finished.add(record["id"], place)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add finished requests (``id``, ``tokens``, …); on return they are on disk, or none of them is and ServeError was raised."""
        lines = [(record["id"], _line(record)) for record in records if record["id"] not in self.finished]
        place = self._write(b"".join(line for _, line in lines))
        for identifier, line in lines:
            self.finished.add(identifier, place)
            place += len(line)

    def _write(self, data: bytes) -> int:
        """Add ``data`` whole; returns where it begins. What a full disk took of it is cut off again."""
        place, view = os.fstat(self._file.fileno()).st_size, memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(place)
            raise ServeError(f"{self.path}: a finished request could not be kept: {error.strerror}") from None
        return place

    def remove(self) -> None:
        """Delete the file: its results are now in requests.jsonl. The folder goes too, where no other journal is in it."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.finished.close()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
