"""What a stage process tells its launcher: one JSON object per line, over a pipe of its own, or in a file that both can see."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EventWriter:
    """The stage's end, on an inherited file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, event: str, **fields: Any) -> None:
        """Write one event; returns when the pipe holds all of it, so that it outlives this process."""
        data = memoryview(json.dumps({"event": event, **fields}, separators=(",", ":")).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]


def event_path(folder: Path, rank: int) -> Path:
    """Where the stage of this rank says how it goes."""
    return folder / f"events-{rank}.jsonl"


def events_file(path: Path) -> EventWriter:
    """A stage's end in a file, which only grows."""
    return EventWriter(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666))


class EventFileReader:
    """The launcher's end of a file; it is opened anew at each look, which makes a network file system ask for what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """All whole events that have arrived since the last look."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)


class EventReader:
    """The launcher's end; non-blocking."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._rest = b""

    def read(self) -> Iterator[dict[str, Any]]:
        """All whole events that have arrived. A line torn by the stage's death is dropped."""
        parts = [self._rest]
        while True:
            try:
                data = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            parts.append(data)
        *lines, self._rest = b"".join(parts).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.descriptor)
