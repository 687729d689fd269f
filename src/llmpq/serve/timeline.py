"""What a stage did when, recorded while it serves: its calls, and the messages that it took."""

import time
from array import array
from typing import Any, Generic, NamedTuple, TypeVar

from llmpq.trace import Call, Message

MAX_ENTRIES = 20_000  # of each kind per stage; beyond, only the sums go on, so that memory does not grow with the length of a run

_PHASES = ("prefill", "decode", "tokens")
_READ: dict[type, Any] = {str: lambda value: _PHASES[int(value)], int: int, float: float, bool: bool}

Entry = TypeVar("Entry", bound=NamedTuple)


class _Entries(Generic[Entry]):
    """The first MAX_ENTRIES entries of one kind, as numbers; all of their memory is taken at once, so that a long run does not grow."""

    def __init__(self, kind: type[Entry]) -> None:
        self._kind, self._width, self._count = kind, len(kind._fields), 0
        self._rows = array("d", bytes(8 * self._width * MAX_ENTRIES))

    def add(self, entry: Entry) -> None:
        if self._count < MAX_ENTRIES:
            first = self._count * self._width
            self._rows[first : first + self._width] = array("d", (_PHASES.index(entry[0]), *entry[1:]))
            self._count += 1

    def all(self) -> list[Entry]:
        read = [_READ[kind] for kind in self._kind.__annotations__.values()]
        rows = (self._rows[first : first + self._width] for first in range(0, self._count * self._width, self._width))
        return [self._kind(*(make(value) for make, value in zip(read, row, strict=True))) for row in rows]


class Timeline:
    """The calls and messages of one stage and the sums over its calls."""

    def __init__(self) -> None:
        self._calls, self._messages = _Entries(Call), _Entries(Message)
        self.count = 0
        self.busy_s = 0.0
        self.cpu_s = 0.0
        self.process_start_s = 0.0

    @property
    def calls(self) -> list[Call]:
        """The first MAX_ENTRIES of them."""
        return self._calls.all()

    @property
    def messages(self) -> list[Message]:
        """The first MAX_ENTRIES of them."""
        return self._messages.all()

    def process_cpu_s(self) -> float:
        """Processor seconds of the whole process since the first measured call: the calls, and all that moves data between them."""
        return time.process_time() - self.process_start_s

    def add(self, call: Call) -> None:
        """Record one finished call."""
        self.count += 1
        self.busy_s += call.end_s - call.start_s
        self.cpu_s += call.cpu_s
        self._calls.add(call)

    def took(self, message: Message) -> None:
        """Record one message."""
        self._messages.add(message)

    def report(self) -> dict[str, Any]:
        """All of it, as a stage reports it to the launcher."""
        return {
            "calls": self.calls,
            "messages": self.messages,
            "call_count": self.count,
            "busy_s": self.busy_s,
            "cpu_s": self.cpu_s,
            "process_cpu_s": self.process_cpu_s(),
        }
