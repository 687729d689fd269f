"""What a stage process tells its launcher: one JSON object per line, over a pipe of its own."""

import json
import os
from collections.abc import Iterator
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
