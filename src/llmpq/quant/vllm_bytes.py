"""How many bytes vLLM keeps of a model on processor cores, where it computes in fp32: what a planner for it counts."""

import math
from typing import TYPE_CHECKING

from llmpq.quant.bytes import End, resident_end_bytes, resident_layer_bytes, stored_layer_bytes
from llmpq.quant.options import weight_option

if TYPE_CHECKING:
    from llmpq.model.spec import ModelSpec

BLOCK_TOKENS = 128  # vLLM keeps a sequence's cache in whole blocks, of at most so many tokens
TYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_PLAIN = "32"


def layer_bytes(spec: "ModelSpec", option: str) -> int:
    """Of a layer: fp32 weights, or the codes and scales as they are stored."""
    if weight_option(option).quantised:
        return stored_layer_bytes(spec, option)
    return resident_layer_bytes(spec, _PLAIN)


def end_bytes(spec: "ModelSpec", end: End) -> int:
    """Of embedding or head, in fp32."""
    return resident_end_bytes(spec, end, _PLAIN)


def shared_end_bytes(spec: "ModelSpec") -> int:
    """What of the head is the embedding's too, where one stage has both."""
    return 4 * spec.vocab * spec.hidden if spec.tied_embeddings else 0


def cache_bytes(spec: "ModelSpec", slots: int, longest: int, dtype: str) -> int:
    """Of one layer's cache for ``slots`` sequences of up to ``longest`` tokens, in whole blocks and with the one never given out."""
    blocks = slots * math.ceil(longest / BLOCK_TOKENS) + 1
    return 2 * blocks * BLOCK_TOKENS * spec.kv_heads * spec.head_dim * TYPE_BYTES[dtype]
