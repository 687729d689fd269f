"""One device's tables in problem.json: bytes and times of a layer at every option, of the ends, and the workspace, by micro-batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmpq.cost.latency import NATIVE, LatencyModel
from llmpq.cost.workspace import workspace_bytes
from llmpq.errors import ArtifactError
from llmpq.model.spec import ModelSpec
from llmpq.quant import bytes as quant_bytes
from llmpq.quant import vllm_bytes
from llmpq.quant.bytes import ENDS
from llmpq.quant.options import layer_option, options_of_end, weight_option

MIB = 2**20
TOKEN_BYTES = 8  # token ids travel back as int64
MESSAGES_PER_LINK = 2  # buffers at each end of a link between stages: one moves while the other is computed
MESSAGE_HEADER_BYTES = 256
LENGTH_SAMPLES = 7  # prompt lengths and contexts that the tables by length have
CONTEXT_SAMPLES = 9  # contexts at which a decode time is averaged over a long generation


@dataclass(frozen=True)
class Shape:
    """What the tables are computed for."""

    prompt_tokens: int
    new_tokens: int
    sizes: Sequence[int]
    token_activation_bytes: int
    devices: int
    options: Sequence[str]
    end_options: Sequence[str]
    outlier_columns: int
    hand_off_ms: float
    backend: str = NATIVE

    @property
    def contexts(self) -> list[float]:
        """Context lengths of the decode steps: the k-th attends prompt + k tokens, its own included (the first token is prefill's)."""
        last = self.prompt_tokens + max(self.new_tokens - 1, 1)
        count = min(CONTEXT_SAMPLES, last - self.prompt_tokens)
        return [float(context) for context in np.linspace(self.prompt_tokens + 1, last, count)]

    @property
    def prompt_lengths(self) -> list[int]:
        """Prompt lengths of the tables by length, up to the longest."""
        return _spread(self.prompt_tokens)

    @property
    def context_lengths(self) -> list[int]:
        """Contexts of the tables by length, up to the longest."""
        return _spread(self.prompt_tokens + self.new_tokens)


def _spread(last: int) -> list[int]:
    """LENGTH_SAMPLES lengths from 1 to ``last``, or fewer; two at least."""
    return sorted({int(length) for length in np.linspace(1, max(last, 2), LENGTH_SAMPLES)})


def offered_options(options: Sequence[str], resident: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """(options worth offering, one note for each that is not).

    An option that is not smaller in residence than the next higher bit width with the same cache saves nothing and only loses quality.
    Options of one width (``8``, ``w8a8``) are alternatives and are not compared with each other.
    """
    kept, notes, known = [], [], {option: layer_option(option) for option in options}
    for option in options:
        alike = {other: found.weights.bits for other, found in known.items() if found.kv == known[option].kv}
        higher = min((bits for bits in alike.values() if bits > alike[option]), default=None)
        rivals = [other for other, bits in alike.items() if bits == higher]
        rival = min(rivals, key=lambda other: resident[other], default=None)
        if rival is not None and resident[option] >= resident[rival]:
            notes.append(f"option {option} is not offered: a layer takes {resident[option]} bytes, {rival} takes {resident[rival]}")
        else:
            kept.append(option)
    return kept, notes


def device_tables(
    spec: ModelSpec,
    member: Mapping[str, Any],
    kind: Mapping[str, Any],
    latency: LatencyModel,
    cost: Mapping[str, Any],
    shape: Shape,
) -> tuple[dict[str, Any], list[str]]:
    """(the ``devices`` entry of one cluster ``member`` of type ``kind``, notes on options that it is not offered).

    Usable memory is the type's ``memory_mib`` less its ``reserve_mib``, if any: an emulated budget covers what a stage enters in its
    ledger, so nothing is set aside for the runtime unless the device says so. Raises ArtifactError where no option was profiled.
    """
    profiled = latency.options()
    notes = [
        f"option {option} is not offered: it was not profiled on {latency.device}" for option in shape.options if option not in profiled
    ]
    candidates = [option for option in shape.options if option in profiled]
    weights = {option: layer_option(option).weights.name for option in candidates}
    resident = {option: _layer_bytes(spec, weights[option], shape) for option in candidates}
    kept, dropped = offered_options(candidates, resident)
    if not kept:
        raise ArtifactError(f"cost of {latency.device}: none of the options {list(shape.options)} was profiled; profile the device again")
    tables = {
        option: {
            "resident_bytes": resident[option],
            "stored_bytes": int(quant_bytes.stored_layer_bytes(spec, weights[option], shape.outlier_columns)),
            **_times(latency, "layer", option, shape),
        }
        for option in kept
    }
    ends: dict[str, Any] = {
        end: {option: _end(spec, latency, end, option, shape) for option in options_of_end(end, shape.end_options)} for end in ENDS
    }
    reserve = float(kind.get("reserve_mib") or 0.0)
    table = {
        "name": member["name"],
        "type": member["device"],
        "memory_bytes": int((float(kind["memory_mib"]) - reserve) * MIB),
        "options": tables,
        **ends,
        "workspace_bytes": {
            "prefill": _workspace(cost, "prefill", shape.prompt_tokens, shape.prompt_tokens, shape),
            "decode": _workspace(cost, "decode", shape.prompt_tokens + shape.new_tokens, 1, shape),
        },
        "overhead_ms": {
            "prefill": _overhead(latency, "prefill", shape.prompt_tokens, shape),
            "decode": _overhead(latency, "decode", shape.contexts[0], shape),
        },
    }
    return table, notes + dropped


def _layer_bytes(spec: ModelSpec, weights: str, shape: Shape) -> int:
    """What a layer keeps in memory."""
    if shape.backend != NATIVE:
        return vllm_bytes.layer_bytes(spec, weights)
    return int(quant_bytes.resident_layer_bytes(spec, weights, shape.outlier_columns))


def _end(spec: ModelSpec, latency: LatencyModel, end: quant_bytes.End, option: str, shape: Shape) -> dict[str, Any]:
    """One end at one option; stored bytes where it has a file, and of a head what it shares with an embedding at the same option."""
    own = shape.backend == NATIVE
    sizes = {"resident_bytes": quant_bytes.resident_end_bytes(spec, end, option) if own else vllm_bytes.end_bytes(spec, end)}
    if weight_option(option).quantised:
        sizes["stored_bytes"] = quant_bytes.stored_end_bytes(spec, end, option)
    shared = quant_bytes.shared_end_bytes(spec, option) if own else vllm_bytes.shared_end_bytes(spec)
    if end == "head" and shared:
        sizes["shared_bytes"] = shared
    return {**sizes, **_times(latency, end, option, shape)}


def _workspace(cost: Mapping[str, Any], phase: str, length: int, tokens: int, shape: Shape) -> dict[str, int]:
    """Peak temporaries of a call plus the messages that a stage with neighbours holds meanwhile, by micro-batch."""
    sent = {size: size * (tokens * shape.token_activation_bytes + TOKEN_BYTES) + MESSAGE_HEADER_BYTES for size in shape.sizes}
    buffers = MESSAGES_PER_LINK * min(
        shape.devices - 1, 2
    )  # of two stages each has one link for hidden states, between them a stage has two
    return {str(size): workspace_bytes(cost["workspace"], phase, size, length) + buffers * sent[size] for size in shape.sizes}


def _overhead(latency: LatencyModel, phase: str, length: float, shape: Shape) -> float:
    """Milliseconds of a call besides its layers and ends: the empty call, the mean over micro-batches, and handing on the result."""
    calls = [latency.overhead(phase, size, length) for size in shape.sizes]
    return round(float(np.mean(calls)) + shape.hand_off_ms, 6)


def scheduler_ms(latency: LatencyModel, shape: Shape) -> float:
    """Milliseconds from the end of a call until the next one of the same requests can begin, the mean over micro-batches."""
    return round(float(np.mean([latency.overhead("decode", size, shape.contexts[0], "scheduler") for size in shape.sizes])), 6)


def _times(latency: LatencyModel, part: str, option: str, shape: Shape) -> dict[str, dict[str, Any]]:
    prefill = {str(size): round(latency.predict(part, "prefill", option, size, shape.prompt_tokens), 6) for size in shape.sizes}
    decode = {
        str(size): round(float(np.mean([latency.predict(part, "decode", option, size, context) for context in shape.contexts])), 6)
        for size in shape.sizes
    }
    lengths = {"prefill": shape.prompt_lengths, "decode": shape.context_lengths}
    by_length = {
        f"{phase}_by_length_ms": {
            str(size): [round(latency.predict(part, phase, option, size, length), 6) for length in found] for size in shape.sizes
        }
        for phase, found in lengths.items()
    }
    return {"prefill_ms": prefill, "decode_ms": decode, **by_length}
