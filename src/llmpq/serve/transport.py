"""Messages between stages: a fixed header, a few integers, and a block of floats, over torch.distributed.

A message is one tensor of bytes: 128 bytes of header, ``integers`` (int64: prompt lengths, positions, token ids or seeds), ``values``
(fp32: hidden states, top-2 margins, or temperature and top-p). Both ends keep rings of preallocated buffers, receives are posted ahead,
and sends are not waited for, so that moving one micro-batch overlaps computing the next (the plan's ``overlapped_sends``). Messages of a
link arrive in the order sent, so the header needs no tag; a stage does what the header says. Nothing is pickled.
"""

import datetime
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.distributed as dist

from llmpq import trace
from llmpq.errors import ServeError, first_line

HEADER_BYTES = 128
SCATTERED = -1
_ALIGNMENT = 64  # of the float block: what vectorised kernels like
_MAGIC = 0x6C6C6D7071_02  # "llmpq", version 2 of the wire format


class PeerError(ServeError):
    """The other end of a link is gone or silent: ``peer`` is to blame, and what it says itself is the better message."""

    def __init__(self, peer: int, message: str) -> None:
        super().__init__(message)
        self.peer = peer


class Kind(IntEnum):
    """What a message asks for."""

    PREFILL = 1
    DECODE = 2
    TOKENS = 3
    STOP = 4
    SAMPLING = 5


_MICRO_BATCHES = (Kind.PREFILL, Kind.DECODE, Kind.TOKENS)


@dataclass(frozen=True, slots=True)
class Header:
    """``step`` is the index of the token being generated, where all rows are at the same; ``measured`` is false for the warm-up.

    Rows take the slots from ``first_slot`` on, in prefill any where it is SCATTERED: then their numbers follow the prompt lengths.
    """

    kind: Kind
    micro_batch: int = 0
    first_slot: int = 0
    rows: int = 0
    tokens: int = 0
    step: int = 0
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Message:
    """``integers`` [rows] int64, twice as many for scattered rows, and ``values`` fp32 [rows, tokens, width], [rows, width] or [rows];
    views into a receive buffer."""

    header: Header
    integers: torch.Tensor
    values: torch.Tensor


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def message_bytes(rows: int, tokens: int, width: int, scattered: bool = False) -> int:
    """Bytes of the largest message of ``rows`` sequences (``scattered``: with their slots), ``tokens`` vectors of ``width`` fp32 numbers
    each."""
    return HEADER_BYTES + _aligned(8 * rows * (2 if scattered else 1)) + 4 * rows * tokens * width


class Sender:
    """The sending end of a link to ``peer``; at most ``depth`` messages are under way.

    ``seconds`` is the time spent copying into buffers and waiting for one to be free, without that for STOP; the owner zeroes it when the
    measured part begins. A peer that takes nothing for longer than
    ``timeout_s`` raises PeerError.
    """

    def __init__(self, peer: int, buffer_bytes: int, depth: int, *, timeout_s: float) -> None:
        self._peer = peer
        self._timeout_s = timeout_s
        self._free = deque(torch.zeros(buffer_bytes, dtype=torch.uint8) for _ in range(depth))
        self._pending: deque[tuple[dist.Work, torch.Tensor, torch.Tensor]] = deque()
        self.seconds = 0.0

    def send(self, header: Header, integers: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        """Copy the message and start sending it; returns at once unless all buffers are under way."""
        start = time.perf_counter()
        while self._pending and (not self._free or self._pending[0][0].is_completed()):
            self._reclaim()
        buffer = self._free.popleft()
        end = HEADER_BYTES
        if integers is not None:
            count = integers.numel()
            buffer[end : end + 8 * count].view(torch.int64).copy_(integers)
            end += _aligned(8 * count)
        width = 0
        if values is not None:
            size = 4 * values.numel()
            buffer[end : end + size].view(torch.float32).copy_(values.reshape(-1))
            end += size
            width = values.shape[-1] if values.dim() > 1 else 0
        fields = buffer[:HEADER_BYTES].view(torch.int64).numpy()
        fields[:10] = (
            *(_MAGIC, header.kind, header.micro_batch, header.first_slot, header.rows, header.tokens, header.step, header.measured, width),
            time.monotonic_ns(),
        )
        payload = buffer[:end]
        self._pending.append((_start(dist.isend, payload, self._peer), buffer, payload))
        if header.kind is not Kind.STOP:
            self.seconds += time.perf_counter() - start

    def flush(self) -> None:
        """Wait until everything has been handed to the network."""
        while self._pending:
            self._reclaim()

    def _reclaim(self) -> None:
        work, buffer, _ = self._pending.popleft()
        _wait(work, self._peer, self._timeout_s)
        self._free.append(buffer)


class Receiver:
    """The receiving end of a link from ``peer``, with ``depth`` receives posted ahead.

    A message is held back until ``delay_s`` after it was sent (an emulated link; same host, same clock). ``seconds`` is the time spent
    waiting, without that for STOP; the owner zeroes it when the measured part begins. ``took`` is told of every measured micro-batch's
    message. A silence longer than ``timeout_s`` raises PeerError.
    """

    def __init__(
        self,
        peer: int,
        buffer_bytes: int,
        depth: int,
        *,
        timeout_s: float,
        delay_s: float = 0.0,
        took: Callable[[trace.Message], None] | None = None,
    ) -> None:
        self._peer = peer
        self._took = took
        self._timeout_s = timeout_s
        self._delay_ns = int(delay_s * 1e9)
        self._posted: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._held: deque[torch.Tensor] = deque()
        self.seconds = 0.0
        for _ in range(depth):
            self._post(torch.zeros(buffer_bytes, dtype=torch.uint8))

    def receive(self) -> Message:
        """The next message. Its tensors are views into a buffer that is theirs until ``release``."""
        start = time.perf_counter()
        work, buffer = self._posted.popleft()
        _wait(work, self._peer, self._timeout_s)
        fields = buffer[:HEADER_BYTES].view(torch.int64).tolist()
        if fields[0] != _MAGIC:
            raise ServeError(f"the message from stage {self._peer} is not one of llmpq's; do all stages run the same version?")
        if self._delay_ns:
            time.sleep(max(0, fields[9] + self._delay_ns - time.monotonic_ns()) / 1e9)
        self._held.append(buffer)
        message = _parse(buffer, fields)
        header = message.header
        if header.kind is not Kind.STOP:
            end = time.perf_counter()
            self.seconds += end - start
            if self._took is not None and header.measured and header.kind in _MICRO_BATCHES:
                sent = fields[9] / 1e9  # on Linux the monotonic clock and the performance counter are one
                self._took(trace.Message(header.kind.name.lower(), header.micro_batch, header.rows, sent, end, sent >= start))
        return message

    def release(self) -> None:
        """Give the oldest received buffer back, to receive into again."""
        self._post(self._held.popleft())

    def _post(self, buffer: torch.Tensor) -> None:
        self._posted.append((_start(dist.irecv, buffer, self._peer), buffer))


def _parse(buffer: torch.Tensor, fields: list[int]) -> Message:
    kind, micro_batch, first_slot, rows, tokens, step, measured, width = fields[1:9]
    header = Header(Kind(kind), micro_batch, first_slot, rows, tokens, step, bool(measured))
    own = 8 * rows * (2 if first_slot == SCATTERED else 1)
    start = HEADER_BYTES + _aligned(own)
    integers = buffer[HEADER_BYTES : HEADER_BYTES + own].view(torch.int64)
    shape = (rows, tokens, width) if header.kind is Kind.PREFILL else (rows, width) if width else (rows,)
    count = rows * (tokens if header.kind is Kind.PREFILL else 1) * (width or 1)
    values = buffer[start : start + 4 * count].view(torch.float32).view(shape)
    return Message(header, integers, values)


def _start(operation: object, payload: torch.Tensor, peer: int) -> dist.Work:
    try:
        return operation(payload, peer)  # type: ignore[operator]
    except RuntimeError as error:
        raise PeerError(peer, f"stage {peer} is gone: {first_line(error)[:300]}") from None


def _wait(work: dist.Work, peer: int, timeout_s: float) -> None:
    try:
        work.wait(datetime.timedelta(seconds=timeout_s))
    except RuntimeError as error:
        if "Timed out" in str(error):
            raise PeerError(
                peer, f"no answer from stage {peer} for {timeout_s:g} s (serve.timeout_s); it hangs or is far too slow"
            ) from None
        raise PeerError(peer, f"the connection to stage {peer} was lost: {first_line(error)[:300]}") from None
