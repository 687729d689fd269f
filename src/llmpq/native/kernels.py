"""The kernels of kernels.c as functions of tensors.

Each checks what the C code takes for granted: fp32 on the CPU, contiguous, shapes that agree.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmpq.native.library import library

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "llmpq_rms_norm": (_POINTER, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _INT),
    "llmpq_silu_mul": (_POINTER, _POINTER, _LONG, _LONG, _INT),
    "llmpq_normalise_rows": (*[_POINTER] * 5, _LONG, _FLOAT, _LONG, _LONG, _INT),
    "llmpq_decode_attention": (*[_POINTER] * 4, _LONG, _LONG, _POINTER, _POINTER, _LONG, *[_POINTER] * 5, *[_LONG] * 6, _FLOAT, _INT),
}


@functools.cache
def _function(name: str) -> Callable[..., None]:
    function = library()[name]
    function.argtypes, function.restype = list(_ARGUMENTS[name]), None
    return function


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., n] / sqrt(mean of squares + eps) · weight [n]."""
    x = _floats(x)
    n = x.shape[-1]
    if weight.numel() != n:
        raise ValueError(f"a norm of {weight.numel()} weights on rows of {n}")
    out = torch.empty_like(x)
    call = _function("llmpq_rms_norm")
    call(out.data_ptr(), x.data_ptr(), _floats(weight).data_ptr(), eps, x.numel() // n, n, torch.get_num_threads())
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2 n], gate and up side by side → silu(gate) · up [..., n]."""
    gate_up = _floats(gate_up)
    n = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], n)
    call = _function("llmpq_silu_mul")
    call(out.data_ptr(), gate_up.data_ptr(), gate_up.numel() // (2 * n), n, torch.get_num_threads())
    return out


def normalise_rows(x: Tensor, floor: float, columns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of x [rows, n] divided by their largest magnitudes (``floor`` at least), these [rows, 1], and what stood in ``columns``.

    ``columns`` [c] int64 are taken out first: [rows, c], empty without them; zeros stand in their place.
    """
    x = _floats(x)
    rows, n = x.shape
    if columns is not None and (columns.dtype is not torch.int64 or not columns.is_contiguous()):
        raise ValueError(f"columns must be int64 and contiguous, not {columns.dtype} with strides {columns.stride()}")
    count = 0 if columns is None else columns.numel()
    out, largest, taken = torch.empty_like(x), x.new_empty(rows, 1), x.new_empty(rows, count)
    call = _function("llmpq_normalise_rows")
    pointers = (_place(part) for part in (out, largest, taken, x, columns))
    call(*pointers, count, floor, rows, n, torch.get_num_threads())
    return out, largest, taken


def decode_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: tuple[Tensor, Tensor],
    positions: Tensor,
    longest: int,
    rotary: tuple[Tensor, Tensor] | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """One new token per row: its key and value go into the cache, its queries attend to all of the row's positions.

    queries [rows, heads, d], keys and values [rows, kv_heads, d], each row's heads next to each other; ``cache`` keys and values
    [rows, kv_heads, capacity, d] in fp16; ``positions`` [rows] int64, below ``longest``; ``rotary`` cosine and signed sine, [1, d] for all
    rows or [rows, 1, d]; ``slopes`` [heads] of ALiBi. Returns [rows, heads, d].
    """
    rows, heads, d = queries.shape
    kv_heads, capacity = keys.shape[1], cache[0].shape[2]
    if any(part.dtype is not torch.float16 or not part.is_contiguous() for part in cache):
        raise ValueError("the cache must be contiguous and fp16")
    for part in (queries, keys, values):
        if part.dtype is not torch.float32 or part.stride()[1:] != (d, 1):
            raise ValueError(f"heads of one row must be next to each other in fp32, not {part.dtype} with strides {part.stride()}")
    if queries.stride(0) != keys.stride(0) or longest > capacity or any(part.shape != (rows, kv_heads, capacity, d) for part in cache):
        raise ValueError(f"queries {tuple(queries.shape)} do not go with a cache {tuple(cache[0].shape)} up to position {longest - 1}")
    if positions.dtype is not torch.int64 or not positions.is_contiguous() or positions.shape != (rows,):
        raise ValueError(f"positions must be [{rows}] in int64, not {tuple(positions.shape)} in {positions.dtype}")
    cosine, sine = (_floats(table) for table in rotary) if rotary is not None else (None, None)
    if cosine is not None and (cosine.numel() not in (d, rows * d) or sine is None or sine.numel() != cosine.numel()):
        raise ValueError(f"a rotation of {cosine.numel()} numbers on {rows} rows of {d}")
    if slopes is not None and _floats(slopes).numel() != heads:
        raise ValueError(f"{slopes.numel()} slopes on {heads} heads")
    threads = torch.get_num_threads()
    out, scratch = queries.new_empty(rows, heads, d), queries.new_empty(threads, heads // kv_heads * (longest + d))
    call = _function("llmpq_decode_attention")
    call(
        *(_place(part) for part in (out, queries, keys, values)),
        *(queries.stride(0), values.stride(0)),
        *(_place(cosine), _place(sine), 0 if cosine is None or cosine.numel() == d else d),
        *(_place(part) for part in cache),
        *(_place(part) for part in (positions, slopes, scratch)),
        *(longest, rows, kv_heads, heads // kv_heads, d, capacity, d**-0.5, threads),
    )
    return out


def _floats(x: Tensor) -> Tensor:
    if x.requires_grad:
        raise ValueError("the kernels give no gradients")
    if x.dtype is not torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
        raise ValueError(f"the kernels take contiguous fp32 on the CPU, not {x.dtype} with strides {x.stride()} on {x.device}")
    return x


def _place(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
