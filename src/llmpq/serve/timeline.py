"""What a stage did when, recorded while it serves: its calls, and the messages that it took."""

import time
from typing import Any

from llmpq.trace import Call, Message

MAX_ENTRIES = 200_000  # of each kind per stage; beyond, only the sums go on, so that memory does not grow with the length of a run


class Timeline:
    """The calls and messages of one stage and the sums over its calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.messages: list[Message] = []
        self.count = 0
        self.busy_s = 0.0
        self.cpu_s = 0.0
        self.process_start_s = 0.0

    def process_cpu_s(self) -> float:
        """Processor seconds of the whole process since the first measured call: the calls, and all that moves data between them."""
        return time.process_time() - self.process_start_s

    def add(self, call: Call) -> None:
        """Record one finished call."""
        self.count += 1
        self.busy_s += call.end_s - call.start_s
        self.cpu_s += call.cpu_s
        if len(self.calls) < MAX_ENTRIES:
            self.calls.append(call)

    def took(self, message: Message) -> None:
        """Record one message."""
        if len(self.messages) < MAX_ENTRIES:
            self.messages.append(message)

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
