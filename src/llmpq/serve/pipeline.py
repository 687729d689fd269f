"""The chain of stages as seen by each of its processes: the first drives it, the others follow what arrives."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmpq.serve.sampling import SamplingNotes
from llmpq.serve.stage import Output, Stage
from llmpq.serve.transport import Header, Kind, Receiver, Sender


class Pipeline:
    """The first stage's end of the chain: submit calls, collect tokens in the order submitted.

    With a single stage ``sender`` and ``receiver`` are None and everything happens in ``submit``.
    """

    def __init__(self, stage: Stage, sender: Sender | None, receiver: Receiver | None) -> None:
        self._stage = stage
        self._sender = sender
        self._receiver = receiver
        self._done: deque[Output] = deque()
        self._notes = SamplingNotes()

    def assign(self, first_slot: int, requests: Sequence[Mapping[str, Any]]) -> None:
        """Before their prompts are submitted: ``requests`` take the slots from ``first_slot`` on. No message while all are greedy."""
        note = self._notes.note(first_slot, requests)
        if note is None:
            return
        if self._sender is None:
            self._stage.assign(first_slot, *note)
        else:
            self._sender.send(Header(Kind.SAMPLING, first_slot=first_slot, rows=len(requests)), *note)

    def submit(self, header: Header, integers: torch.Tensor, ids: torch.Tensor) -> None:
        """Compute the first stage's part and send it on; returns without waiting for the others.

        ``integers`` [rows] are prompt lengths or positions, ``ids`` [rows, tokens] or [rows].
        """
        output = self._stage.run(header, integers, ids)
        if self._sender is None:
            self._done.append(output)
        else:
            self._sender.send(header, output.integers, output.values)

    def collect(self, ids: torch.Tensor, margins: torch.Tensor) -> Header:
        """Wait for the oldest submitted call and copy its token ids [rows] (int64) and margins [rows] (fp32) into the given tensors."""
        if self._receiver is None:
            output = self._done.popleft()
            ids.copy_(output.integers)
            margins.copy_(output.values)
            return output.header
        message = self._receiver.receive()
        ids.copy_(message.integers)
        margins.copy_(message.values)
        self._receiver.release()
        return message.header

    def zero_counters(self) -> None:
        """Forget the seconds of sending and waiting so far: they belong to the warm-up."""
        _zero(self._sender, self._receiver)

    def stop(self) -> None:
        """Tell the other stages that nothing more will come, and wait until the word has gone round."""
        if self._sender is not None and self._receiver is not None:
            self._sender.send(Header(Kind.STOP))
            self._sender.flush()
            self._receiver.receive()


def follow(stage: Stage, receiver: Receiver, sender: Sender) -> None:
    """A later stage's loop: do what each message says, pass the result on, until told to stop.

    What is said about sampling ends at the last stage, which alone chooses tokens.
    """
    warming_up = True
    while True:
        message = receiver.receive()
        if warming_up and message.header.measured:
            warming_up = False
            _zero(sender, receiver)
        if message.header.kind is Kind.STOP:
            sender.send(message.header)
            sender.flush()
            return
        if message.header.kind is not Kind.SAMPLING:
            output = stage.run(message.header, message.integers, message.values)
            sender.send(output.header, output.integers, output.values)
        elif stage.chooses:
            stage.assign(message.header.first_slot, message.integers, message.values)
        else:
            sender.send(message.header, message.integers, message.values)
        receiver.release()


def _zero(*ends: Sender | Receiver | None) -> None:
    for end in ends:
        if end is not None:
            end.seconds = 0.0
