"""The KV cache of one stage: allocated once for all slots, written in place."""

import torch
from torch import Tensor

from llmpq.model.spec import ModelSpec

# Attention runs in fp32 whatever the weights' option is, so keys and values are kept in fp32 (4 bytes an element).
KV_DTYPE = torch.float32


class StageCache:
    """keys and values [layers, slots, kv_heads, capacity, head_dim]; a row's tokens start at position 0.

    Bytes: 2 · layers · slots · capacity · kv_heads · head_dim · 4 (method: KV cache per layer, times the stage's layers).
    """

    def __init__(self, spec: ModelSpec, layers: int, slots: int, capacity: int) -> None:
        shape = (layers, slots, spec.kv_heads, capacity, spec.head_dim)
        # zeros, not empty: positions hidden by a mask are still multiplied (by 0), and 0 · NaN would spread.
        self.keys = torch.zeros(shape, dtype=KV_DTYPE)
        self.values = torch.zeros(shape, dtype=KV_DTYPE)
        self.slots, self.capacity = slots, capacity

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def views(self, rows: slice) -> list[tuple[Tensor, Tensor]]:
        """Per layer the keys and values [rows, kv_heads, capacity, head_dim] of a contiguous slice of slots."""
        return list(zip(self.keys[:, rows].unbind(0), self.values[:, rows].unbind(0), strict=True))
