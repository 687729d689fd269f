"""The ``barrier`` schedule: which requests form which micro-batch, and in which chunks each of them is prefilled.

Requests are served in waves of ``slots``. All prefill chunks of a wave go first; when the last of them has passed the last stage, decode
rounds go over the micro-batches in turn. Sizes are balanced: they differ by at most one, the larger ones first, so that the number of
micro-batches and chunks is the one that the plan was priced for. Pure numbers, no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Rows [first_slot, first_slot + rows) of a wave that are prefilled in one call."""

    first_slot: int
    rows: int


@dataclass(frozen=True)
class MicroBatch:
    """Rows [first_slot, first_slot + rows) of a wave that are decoded in one call, and the chunks that prefill them."""

    index: int
    first_slot: int
    rows: int
    chunks: tuple[Chunk, ...]


def balanced(total: int, parts: int) -> list[int]:
    """``parts`` positive sizes that sum to ``total`` and differ by at most one, the larger first. ValueError if there are too many."""
    if not 1 <= parts <= total:
        raise ValueError(f"{total} rows cannot form {parts} micro-batches")
    size, larger = divmod(total, parts)
    return [size + 1] * larger + [size] * (parts - larger)


def micro_batches(requests: int, decode_size: int, prefill_size: int) -> list[MicroBatch]:
    """Micro-batches of one wave: as few as ``decode_size`` (eta) allows, each prefilled in as few chunks as ``prefill_size`` (xi) allows.

    Hence m_d = ceil(G / eta) and m_p = sum over micro-batches of ceil(eta_k / xi).
    """
    if requests < 1 or decode_size < 1 or prefill_size < 1:
        raise ValueError(
            f"{requests} requests in micro-batches of {decode_size} (decode) and {prefill_size} (prefill): each must be at least 1"
        )
    batches, slot = [], 0
    for index, rows in enumerate(balanced(requests, -(-requests // decode_size))):
        chunks, first = [], slot
        for size in balanced(rows, -(-rows // prefill_size)):
            chunks.append(Chunk(first, size))
            first += size
        batches.append(MicroBatch(index, slot, rows, tuple(chunks)))
        slot += rows
    return batches


def waves(requests: int, slots: int) -> list[range]:
    """Consecutive ranges of at most ``slots`` requests, in request order."""
    return [range(first, min(first + slots, requests)) for first in range(0, requests, slots)]


def call_shapes(batches: Sequence[MicroBatch]) -> tuple[list[int], list[int]]:
    """Distinct numbers of rows of the prefill chunks and of the decode micro-batches, largest first: what a warm-up has to run."""
    prefill = {chunk.rows for batch in batches for chunk in batch.chunks}
    decode = {batch.rows for batch in batches}
    return sorted(prefill, reverse=True), sorted(decode, reverse=True)
