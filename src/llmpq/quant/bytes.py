"""The only place that knows how many bytes an option takes: in its file (stored, exact) and packed for the CPU (resident, ± 2 %).

Resident means what the process has allocated and keeps after packing, which is what a memory budget must hold. The system may
count a little less: pages of FBGEMM's padding that were never touched are not backed by memory.
"""

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from llmpq.errors import ConfigError
from llmpq.quant.kernels.groups import kernel_groups
from llmpq.quant.options import DEFAULT_KV, END_OPTIONS, OUTLIER_COLUMNS, outlier_count, weight_option

if TYPE_CHECKING:
    from llmpq.model.spec import ModelSpec

End = Literal["embedding", "head"]
ENDS: tuple[End, ...] = get_args(End)

FLOAT_BYTES, SCALE_BYTES, OFFSET_BYTES, COLUMN_INDEX_BYTES = 4, 2, 2, 4
KV_BYTES, KV_SCALE_BYTES = {"32": 4, "16": 2, "8": 1}, 4
"""Of an element of the cache; one of 8 bits has an fp32 scale for a token and head beside it."""

_INT8_BLOCKS = {"avx2": (512, 8), "avx512": (256, 32), "avx512_vnni": (512, 48)}
_HALF_BLOCKS = {"avx2": (512, 16), "avx512": (512, 32), "avx512_vnni": (512, 32)}
"""FBGEMM's packing blocks (inputs, outputs) by instruction set; a matrix is padded to whole blocks in both directions. Read off the
allocator (glibc mallinfo2) for 19 shapes with torch 2.13, its instruction set limited by FBGEMM_ENABLE_INSTRUCTIONS."""

_INT8_ROW_BYTES = 12
"""FBGEMM keeps a scale, a zero point and a column offset, 4 bytes each, per output."""


def stored_linear_bytes(option: str, out_features: int, in_features: int, outlier_columns: int = OUTLIER_COLUMNS) -> int:
    """Bytes of one operator's tensors in a layer file, without its bias: codes, scales, offsets, outlier columns, or the plain weight."""
    known = weight_option(option)
    weights = out_features * in_features
    if not known.quantised:
        return weights * known.bits // 8
    per_group = FLOAT_BYTES if known.kernel == "bnb-int8" else SCALE_BYTES + (0 if known.symmetric else OFFSET_BYTES)
    total = weights * known.bits // 8 + out_features * known.groups(in_features) * per_group
    if known.outliers:
        kept = outlier_count(in_features, outlier_columns)
        total += kept * (COLUMN_INDEX_BYTES + out_features * FLOAT_BYTES)
    return total


def stored_layer_bytes(spec: "ModelSpec", option: str, outlier_columns: int = OUTLIER_COLUMNS) -> int:
    """Bytes of all tensors of a (layer, option) file: operators, biases and norms. The file adds its header only."""
    operators = sum(stored_linear_bytes(option, *shape, outlier_columns) for shape in spec.operators().values())
    return operators + vector_bytes(spec)


def vector_bytes(spec: "ModelSpec") -> int:
    """Bytes of a layer's norms and biases, fp32 in the file and in memory."""
    norms = 2 * spec.hidden * (2 if spec.norm == "layer" else 1) + (2 * spec.head_dim if spec.qk_norm else 0)
    biases = sum(shape[0] for name, shape in spec.operators().items() if spec.has_bias(name))
    return (norms + biases) * FLOAT_BYTES


def resident_linear_bytes(option: str, out_features: int, in_features: int, outlier_columns: int = OUTLIER_COLUMNS) -> int:
    """Bytes one operator keeps once packed for its CPU kernel, padding included, without its bias."""
    known, weights = weight_option(option), out_features * in_features
    match known.kernel:
        case "float":
            return weights * 4
        case "fp16":
            return 2 * _padded(_HALF_BLOCKS[instruction_set()], out_features, in_features)
        case "bf16":
            return weights * 2
        case "int8":
            return weights + out_features * SCALE_BYTES
        case "int8-dynamic":
            total = _padded(_INT8_BLOCKS[instruction_set()], out_features, in_features) + out_features * _INT8_ROW_BYTES
            kept = outlier_count(in_features, outlier_columns) if known.outliers else 0
            return total + kept * (8 + out_features * FLOAT_BYTES)
        case "int8-grouped":  # offsets are widened to fp32, the type they are multiplied in
            per_group = SCALE_BYTES + (0 if known.symmetric else FLOAT_BYTES)
            return weights + out_features * known.groups(in_features) * per_group
        case "bnb-int8" | "bnb-nf4":  # what the file holds, in another order
            return stored_linear_bytes(option, out_features, in_features)
        case "int4":  # the kernel reads an offset beside every scale
            return weights // 2 + 2 * SCALE_BYTES * out_features * kernel_groups(known, in_features)
        case "int3" | "int2":
            per_group = SCALE_BYTES * (1 if known.symmetric else 2)
            return weights * known.bits // 8 + per_group * out_features * kernel_groups(known, in_features)
    raise ConfigError(f"option '{option}': the CPU has no kernel '{known.kernel}'")


def resident_layer_bytes(spec: "ModelSpec", option: str, outlier_columns: int = OUTLIER_COLUMNS) -> int:
    """Bytes a decoder layer keeps in memory at ``option``: packed operators, biases and norms (no KV cache)."""
    operators = sum(resident_linear_bytes(option, *shape, outlier_columns) for shape in spec.operators().values())
    return operators + vector_bytes(spec)


def stored_end_bytes(spec: "ModelSpec", end: End, option: str) -> int:
    """Bytes of all tensors of an (end, option) file: the table, and the end's norm and positions. The file adds its header only."""
    _check_end(end, option)
    return stored_linear_bytes(option, spec.vocab, spec.hidden) + end_vector_bytes(spec, end)


def resident_end_bytes(spec: "ModelSpec", end: End, option: str) -> int:
    """Bytes that the token embedding (with learned positions), or the final norm and the language-model head, keeps by itself.

    Where a stage holds both ends, ``shared_end_bytes`` of their sum are there once only.
    """
    _check_end(end, option)
    if end == "embedding" and not weight_option(option).quantised:  # looked up in its own type, not packed for a kernel
        return stored_end_bytes(spec, end, option)
    return resident_linear_bytes(option, spec.vocab, spec.hidden) + end_vector_bytes(spec, end)


def shared_end_bytes(spec: "ModelSpec", option: str) -> int:
    """Bytes that embedding and head hold together, once, where one stage has both at ``option`` and the model ties them.

    Only option ``8`` multiplies with codes that can be looked up too; FBGEMM packs those of ``16`` and ``w8a8`` in blocks.
    """
    looked_up = spec.tied_embeddings and weight_option(option).kernel == "int8" and option in END_OPTIONS["embedding"]
    return resident_linear_bytes(option, spec.vocab, spec.hidden) if looked_up else 0


def end_vector_bytes(spec: "ModelSpec", end: End) -> int:
    """Bytes of an end's norm and learned positions, fp32 in the file and in memory."""
    norm = spec.hidden * (2 if spec.norm == "layer" else 1)
    if end == "head":
        return norm * FLOAT_BYTES if spec.final_norm else 0
    positions = (spec.max_positions + spec.position_offset) * spec.hidden if spec.positions == "learned" else 0
    return (positions + (norm if spec.embedding_norm else 0)) * FLOAT_BYTES


def _check_end(end: End, option: str) -> None:
    if weight_option(option).name not in END_OPTIONS[end]:
        raise ConfigError(f"the {end} cannot be kept at '{option}'; it may have {', '.join(END_OPTIONS[end])}")


def kv_layer_bytes(spec: "ModelSpec", slots: int, capacity: int, kv: str = DEFAULT_KV) -> int:
    """Bytes of one layer's keys and values for ``slots`` sequences of up to ``capacity`` tokens, in a cache of precision ``kv``."""
    per_head = spec.head_dim * KV_BYTES[kv] + (KV_SCALE_BYTES if kv == "8" else 0)
    return 2 * slots * capacity * spec.kv_heads * per_head


@functools.cache
def instruction_set() -> str:
    """Which of its kernels FBGEMM uses here: avx2, avx512 or avx512_vnni (from the processor's flags)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "avx2"
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    if not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return "avx2"
    return "avx512_vnni" if "avx512_vnni" in flags else "avx512"


def _padded(block: tuple[int, int], out_features: int, in_features: int) -> int:
    return math.ceil(in_features / block[0]) * block[0] * math.ceil(out_features / block[1]) * block[1]
