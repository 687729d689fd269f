"""The KV cache of one stage: allocated once for all slots, written in place, each layer's in the format that its option names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmpq.model.spec import ModelSpec

_CODES = 127

Parts = tuple[Tensor, ...]
"""Keys or values as a format keeps them; every part is [slots, kv_heads, capacity, …]."""
KeysValues = tuple[Parts, Parts]


class KvFormat(Protocol):
    """How keys and values [..., head_dim] are kept."""

    def empty(self, slots: int, kv_heads: int, capacity: int, head_dim: int) -> Parts:
        """Parts of zeros: positions hidden by a mask are still multiplied (by 0), and 0 · NaN would spread."""
        ...

    def pack(self, x: Tensor) -> Parts:
        """fp32 → parts."""
        ...

    def unpack(self, parts: Parts) -> Tensor:
        """Parts → fp32 as attention sees it."""
        ...


@dataclass(frozen=True)
class Floating:
    """Floating point numbers of one type. What lies beyond its range becomes infinite, and so do logits: the run ends and says so."""

    dtype: torch.dtype

    def empty(self, slots: int, kv_heads: int, capacity: int, head_dim: int) -> Parts:
        return (torch.zeros(slots, kv_heads, capacity, head_dim, dtype=self.dtype),)

    def pack(self, x: Tensor) -> Parts:
        return (x.to(self.dtype),)

    def unpack(self, parts: Parts) -> Tensor:
        return parts[0].float()


class EightBit:
    """int8 codes and an fp32 scale for every token and head: the largest magnitude is code 127, zero is 0."""

    def empty(self, slots: int, kv_heads: int, capacity: int, head_dim: int) -> Parts:
        return (
            torch.zeros(slots, kv_heads, capacity, head_dim, dtype=torch.int8),
            torch.zeros(slots, kv_heads, capacity, 1, dtype=torch.float32),
        )

    def pack(self, x: Tensor) -> Parts:
        scales = x.abs().amax(-1, keepdim=True).div_(_CODES)
        codes = (x / scales.clamp_min(torch.finfo(scales.dtype).tiny)).round_().to(torch.int8)
        return codes, scales

    def unpack(self, parts: Parts) -> Tensor:
        codes, scales = parts
        return codes * scales


FORMATS: dict[str, KvFormat] = {"32": Floating(torch.float32), "16": Floating(torch.float16), "8": EightBit()}
"""By the cache precision of an option."""


class StageCache:
    """Per layer the keys and values of ``slots`` rows; a row's tokens start at position 0.

    Bytes: those of ``llmpq.quant.bytes.kv_layer_bytes``, summed over the stage's layers.
    """

    def __init__(self, spec: ModelSpec, formats: Sequence[KvFormat], slots: int, capacity: int) -> None:
        shape = (slots, spec.kv_heads, capacity, spec.head_dim)
        self.layers: list[KeysValues] = [(each.empty(*shape), each.empty(*shape)) for each in formats]
        self.slots, self.capacity = slots, capacity
        self._views: dict[tuple[int | None, int | None], list[KeysValues]] = {}

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for layer in self.layers for parts in layer for part in parts)

    def views(self, rows: slice) -> list[KeysValues]:
        """Per layer the keys and values of a contiguous slice of slots; made once for every slice."""
        key = (rows.start, rows.stop)
        if key not in self._views:
            self._views[key] = [(_of_rows(keys, rows), _of_rows(values, rows)) for keys, values in self.layers]
        return self._views[key]


def _of_rows(parts: Parts, rows: slice) -> Parts:
    return tuple(part[rows] for part in parts)
