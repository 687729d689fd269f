"""The least time that a machine needs for a batch: operations over measured rates, or bytes over measured bandwidth, whichever is more.

Of one call on b rows of t tokens each, p tokens being in the cache already (n = b · t):
- an operator [out, in]: 2 · n · out · in operations at its option's rate; its weights are read once, out · in · bits / 8 bytes;
- attention of a layer: every query sees what came before it and itself, b · (t · p + t (t + 1) / 2) pairs, and a pair costs
  4 · heads · head size operations in fp32 (a product each for score and mixing); 2 · KV heads · head size · 4 bytes for each of the
  b · (p + t) tokens, read where they were cached and written where they are new;
- the embedding: n rows of the table are read; the head: as an operator, for the b last tokens only.
A call takes max(Σ operations / rate, bytes / bandwidth): arithmetic and memory overlap perfectly, activations stay in the processor's
cache, and everything else (norms, rotation, softmax, the choice of a token, Python) is free. Prefill is one call a wave and decode one
for each further token, so weights are read as seldom as can be. No schedule on this machine, with one stage or several, can be faster.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmpq.model.spec import ModelSpec
from llmpq.quant.bytes import kv_layer_bytes
from llmpq.quant.options import layer_option, weight_option
from llmpq.schedule.batches import waves

CLASSES = ("32", "16", "bf16", "8", "w8a8")
"""Kernels whose rates are measured, by the option they serve."""


@dataclass(frozen=True)
class Rates:
    """What the machine can do with some threads: ``operations`` per second by CLASSES, ``bandwidth`` in bytes per second."""

    operations: Mapping[str, float]
    bandwidth: float

    def of(self, option: str) -> float:
        """Operations per second of the fastest kernel that could make ``option``'s product: its own, or one of wider numbers."""
        known = weight_option(option)
        own = CLASSES[-1] if known.quantises_activations else "8" if known.quantised else option
        return max(self.operations[name] for name in CLASSES[: CLASSES.index(own) + 1])


@dataclass(frozen=True)
class Work:
    """Operations by option, and bytes that must pass between memory and processor."""

    operations: Mapping[str, float]
    moved: float

    def seconds(self, rates: Rates) -> float:
        """The least time of one call."""
        return max(sum(count / rates.of(option) for option, count in self.operations.items()), self.moved / rates.bandwidth)


def call_work(spec: ModelSpec, options: Sequence[str], ends: tuple[str, str], rows: int, tokens: int, past: int) -> Work:
    """The whole model's work in one call on ``rows`` sequences of ``tokens`` new and ``past`` cached tokens.

    ``options`` are the layers', ``ends`` those of embedding and head.
    """
    operations: Counter[str] = Counter()
    count, (embedding, head) = rows * tokens, ends
    moved = count * spec.hidden * _bytes(embedding)
    for option in options:
        moved += kv_layer_bytes(spec, rows, past + tokens, layer_option(option).kv)
        for out_features, in_features in spec.operators().values():
            operations[option] += 2 * count * out_features * in_features
            moved += out_features * in_features * _bytes(option)
    pairs = rows * (tokens * past + tokens * (tokens + 1) // 2)
    operations["32"] += len(options) * pairs * 4 * spec.heads * spec.head_dim
    operations[head] += 2 * rows * spec.vocab * spec.hidden
    moved += spec.vocab * spec.hidden * _bytes(head)
    return Work(operations, moved)


def floor_s(
    spec: ModelSpec,
    options: Sequence[str],
    ends: tuple[str, str],
    rates: Rates,
    *,
    requests: int,
    slots: int,
    prompt_tokens: int,
    new_tokens: int,
) -> tuple[float, float]:
    """Least seconds of prefill and of decode for ``requests`` equal prompts in waves of ``slots``; the first token belongs to prefill."""
    prefill = decode = 0.0
    for wave in waves(requests, slots):
        prefill += call_work(spec, options, ends, len(wave), prompt_tokens, 0).seconds(rates)
        for step in range(new_tokens - 1):
            decode += call_work(spec, options, ends, len(wave), 1, prompt_tokens + step).seconds(rates)
    return prefill, decode


def _bytes(option: str) -> float:
    return weight_option(option).bits / 8
