"""Cost tables of devices that are not here: a roofline from data-sheet peaks, stated kernel efficiencies and the model's shape.

A part takes as long as its operations or its bytes do, whichever is longer, at the shares of the peaks that ``kernels`` states. What
comes out has the form of tables measured and fitted here, and problem.json names its source: ``catalogue``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmpq.cost.kernels import Kernels, kernels
from llmpq.quant.options import options_of_end

MIB = 2**20
HALF_BYTES = 2  # weights, keys, values and hidden states at 16 bit
LOGIT_BYTES = 4
GROUP_SIZE = 128  # input columns that share a 16-bit scale and zero point at 3 and 4 bit
CONTEXT_SAMPLES = 9
END_OPTIONS = ("16",)  # embedding and head, as published
BITS = {"16": 16, "8": 8, "w8a8": 8, "4": 4, "3": 3}


@dataclass(frozen=True)
class Shape:
    """A decoder-only model's sizes, in elements; ``learned_positions`` rows of a position table (0: none)."""

    layers: int
    hidden: int
    ffn: int
    gated: bool
    heads: int
    kv_heads: int
    vocab: int
    learned_positions: int
    tied_embeddings: bool

    @property
    def kv_width(self) -> int:
        return self.kv_heads * (self.hidden // self.heads)

    @property
    def weights(self) -> int:
        """Weights of one layer's linear operators: q, k, v, output, and the two (gated: three) of the MLP."""
        return self.hidden * (2 * self.hidden + 2 * self.kv_width + (3 if self.gated else 2) * self.ffn)

    @property
    def vectors(self) -> int:
        """Biases and norms of one layer."""
        return 4 * self.hidden + 2 * self.hidden + 2 * self.kv_width + self.hidden + self.ffn


@dataclass(frozen=True)
class Peak:
    """Data-sheet peaks without sparsity; ``link_gb_s`` of one direction to a device of the same node."""

    architecture: str
    fp16_tflops: float
    int8_tops: float
    memory_gb_s: float
    link_gb_s: float


def layer_bytes(shape: Shape, option: str) -> int:
    """Bytes of a decoder layer at ``option``: codes, scales (and zero points below 8 bit), norms and biases at 16 bit."""
    bits = BITS[option]
    scales = 0 if bits == 16 else shape.weights // shape.hidden if bits == 8 else 2 * shape.weights // GROUP_SIZE
    return shape.weights * bits // 8 + (scales + shape.vectors) * HALF_BYTES


def table_bytes(shape: Shape, option: str) -> int:
    """Bytes of a vocabulary table: 16 bit, or codes and a 16-bit scale per row."""
    bits = BITS[option]
    return shape.vocab * shape.hidden * bits // 8 + (shape.vocab * HALF_BYTES if bits < 16 else 0)


def end_bytes(shape: Shape, end: str, option: str) -> int:
    """Bytes of the embedding (with learned positions) or of the head (with its norm)."""
    return table_bytes(shape, option) + (shape.learned_positions if end == "embedding" else 2) * shape.hidden * HALF_BYTES


def kv_layer_bytes(shape: Shape, slots: int, tokens: int) -> int:
    """Keys and values of one layer for ``slots`` sequences of ``tokens``, at 16 bit."""
    return 2 * slots * tokens * shape.kv_width * HALF_BYTES


class Roofline:
    """Times in ms of a model's parts on one device type, for one generation of kernels."""

    def __init__(self, shape: Shape, peak: Peak, generation: str) -> None:
        self.shape, self.peak = shape, peak
        self.kernels: Kernels = kernels(generation, peak.architecture)

    @property
    def options(self) -> list[str]:
        """Options with kernels on this device: int8 products need int8 tensor cores."""
        return [name for name, share in self.kernels.options.items() if not share.integer or self.peak.int8_tops]

    def layer_ms(self, option: str, phase: str, size: int, length: float) -> float:
        """One layer for ``size`` requests: prefill of ``length`` prompt tokens each, or one decode step at context ``length``."""
        rows = size * length if phase == "prefill" else size
        linear = self._linear_ms(option, rows, self.shape.weights, layer_bytes(self.shape, option))
        return linear + self._attention_ms(phase, size, length)

    def head_ms(self, option: str, size: int) -> float:
        """Logits of one position per request, in both phases."""
        return self._linear_ms(option, size, self.shape.vocab * self.shape.hidden, table_bytes(self.shape, option))

    def embedding_ms(self, option: str, tokens: float) -> float:
        """Reading ``tokens`` rows at ``option`` and writing them at 16 bit."""
        row = self.shape.hidden * (BITS[option] / 8 + HALF_BYTES)
        return tokens * row / (self.peak.memory_gb_s * 1e6 * self.kernels.options["16"].memory)

    def _linear_ms(self, option: str, rows: float, weights: int, size_bytes: int) -> float:
        share = self.kernels.options[option]
        peak = self.peak.int8_tops if share.integer else self.peak.fp16_tflops
        operations_ms = 2 * weights * rows / (peak * 1e9 * share.compute)
        return max(operations_ms, size_bytes / (self.peak.memory_gb_s * 1e6 * share.memory))

    def _attention_ms(self, phase: str, size: int, length: float) -> float:
        """Scores and their product with the values: 4·s²·h operations in prefill, the cache's bytes in decode."""
        if phase == "prefill":
            return 4 * size * length**2 * self.shape.hidden / (self.peak.fp16_tflops * 1e9 * self.kernels.options["16"].compute)
        return kv_layer_bytes(self.shape, size, 1) * length / (self.peak.memory_gb_s * 1e6 * self.kernels.kv_memory)

    def workspace_bytes(self, phase: str, size: int, prompt: int, context: int) -> int:
        """Hidden states, one MLP activation, scores where the kernels materialise them, and logits of ``size`` requests."""
        rows = size * (prompt if phase == "prefill" else 1)
        states = rows * (6 * self.shape.hidden + self.shape.ffn) * HALF_BYTES
        attended = rows * self.shape.heads * (prompt if phase == "prefill" else context)
        scores = 2 * attended * HALF_BYTES if self.kernels.materialised_scores else 0
        return states + scores + size * self.shape.vocab * LOGIT_BYTES


def device_table(
    name: str,
    kind: Mapping[str, Any],
    shape: Shape,
    generation: str,
    workload: Mapping[str, Any],
    sizes: Mapping[str, Sequence[int]],
    end_options: Sequence[str] = END_OPTIONS,
) -> dict[str, Any]:
    """One ``devices`` entry of problem.json.

    ``kind`` is a device of config/device with its ``peak``; ``workload`` has slots, prompt_tokens and new_tokens; ``sizes`` the
    micro-batch sizes to tabulate by phase; ``end_options`` what embedding and head may be where this device has kernels for it.
    """
    roof = Roofline(shape, Peak(**kind["peak"]), generation)
    prompt, new = int(workload["prompt_tokens"]), int(workload["new_tokens"])
    contexts = np.linspace(prompt + 1, prompt + max(new - 1, 1), min(CONTEXT_SAMPLES, max(new - 1, 1)))

    def table(prefill: Any, decode: Any) -> dict[str, dict[str, float]]:
        return {
            "prefill_ms": {str(size): round(float(prefill(size)), 6) for size in sizes["prefill"]},
            "decode_ms": {str(size): round(float(decode(size)), 6) for size in sizes["decode"]},
        }

    def layer(option: str) -> dict[str, Any]:
        size = layer_bytes(shape, option)
        times = table(
            lambda v: roof.layer_ms(option, "prefill", v, prompt),
            lambda v: np.mean([roof.layer_ms(option, "decode", v, float(context)) for context in contexts]),
        )
        return {"resident_bytes": size, "stored_bytes": size, **times}

    def embedding(option: str) -> dict[str, Any]:
        times = table(lambda v: roof.embedding_ms(option, v * prompt), lambda v: roof.embedding_ms(option, v))
        return {"resident_bytes": end_bytes(shape, "embedding", option), **times}

    def head(option: str) -> dict[str, Any]:
        times = table(lambda v: roof.head_ms(option, v), lambda v: roof.head_ms(option, v))
        return {"resident_bytes": end_bytes(shape, "head", option), **times}

    here = [option for option in end_options if option in roof.options]
    return {
        "name": name,
        "type": str(kind["name"]),
        "memory_bytes": (int(kind["memory_mib"]) - int(kind["reserve_mib"])) * MIB,
        "options": {option: layer(option) for option in roof.options},
        "embedding": {option: embedding(option) for option in options_of_end("embedding", here)},
        "head": {option: head(option) for option in options_of_end("head", here)},
        "workspace_bytes": {
            phase: {str(size): roof.workspace_bytes(phase, size, prompt, prompt + new) for size in sizes[phase]}
            for phase in ("prefill", "decode")
        },
    }


def link_table(
    members: Sequence[Mapping[str, Any]], kinds: Mapping[str, Mapping[str, Any]], ethernet_gbit_s: float
) -> list[dict[str, Any]]:
    """Links of every ordered pair: the slower device's own inside a node, Ethernet between nodes, at LINK_SHARE of the peak."""
    rows = []
    for a in members:
        for b in members:
            if a["name"] == b["name"]:
                continue
            inside = a["node"] == b["node"]
            peak = min(float(kinds[end["device"]]["peak"]["link_gb_s"]) for end in (a, b)) if inside else ethernet_gbit_s / 8
            alpha = NODE_ALPHA_MS if inside else ETHERNET_ALPHA_MS
            rows.append({"from": a["name"], "to": b["name"], "alpha_ms": alpha, "bytes_per_ms": round(peak * 1e6 * LINK_SHARE, 3)})
    return rows


# Assumptions: latency of a message, and the share of a link's peak that a large one reaches.
NODE_ALPHA_MS, ETHERNET_ALPHA_MS, LINK_SHARE = 0.02, 0.05, 0.8


def mean_absolute_error(predicted: Sequence[float], published: Sequence[float]) -> float:
    """Mean of |predicted / published − 1|."""
    return math.fsum(abs(a / b - 1) for a, b in zip(predicted, published, strict=True)) / len(published)
