"""Peak temporary bytes of a stage at shapes between the measured ones.

Temporaries are sums of products of micro-batch and lengths with positive factors, hence convex along each axis: interpolating linearly
between measured shapes never under-estimates.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def workspace_bytes(rows: Iterable[Mapping[str, Any]], phase: str, micro_batch: int, length: int) -> int:
    """Bytes for ``micro_batch`` rows at ``length`` (prompt tokens in prefill, context in decode), the largest over all parts.

    Beyond the measured grid it grows in proportion to the micro-batch and with the square of the length in prefill (scores), linearly
    in decode. Without rows (catalogue devices) it is 0.
    """
    parts: dict[str, dict[int, dict[int, int]]] = {}
    for row in rows:
        if row["phase"] == phase:
            key = row["tokens"] if phase == "prefill" else row["context"]
            parts.setdefault(row["part"], {}).setdefault(row["micro_batch"], {})[key] = row["bytes"]
    largest = 0.0
    for by_size in parts.values():
        sizes = sorted(by_size)
        at_length = [_along_length(by_size[size], length, 2 if phase == "prefill" else 1) for size in sizes]
        found = at_length[-1] * micro_batch / sizes[-1] if micro_batch > sizes[-1] else float(np.interp(micro_batch, sizes, at_length))
        largest = max(largest, found)
    return math.ceil(largest)


def _along_length(by_length: Mapping[int, int], length: int, power: int) -> float:
    lengths = sorted(by_length)
    if length > lengths[-1]:
        return by_length[lengths[-1]] * (length / lengths[-1]) ** power
    return float(np.interp(length, lengths, [by_length[size] for size in lengths]))
