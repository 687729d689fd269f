"""How fast this machine multiplies and reads: the rates under the floor, taken with the kernels that serve, at shapes that suit them."""

import os
import time
from collections.abc import Callable

import torch

from llmpq.bench.isolated import in_fresh_process
from llmpq.bench_serve.floor import CLASSES, Rates
from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.options import weight_option

SHAPES = ((2048, 2048, 2048), (1024, 1536, 576), (1024, 576, 1536))
"""(rows, outputs, inputs): a large square product, and the model's own widths at many rows. The best of them is the rate."""

READ_BYTES = 1 << 28
"""A tensor far larger than any cache."""

SECONDS = 1.0


def measure_rates(cores: list[int], shapes: tuple[tuple[int, int, int], ...] = SHAPES, seconds: float = SECONDS) -> Rates:
    """Rates of a fresh process bound to ``cores``, a thread on each; the best repetition within ``seconds`` of each shape counts."""
    measured: Rates = in_fresh_process("measuring the machine's rates", _measured, cores, shapes, seconds)
    return measured


def _measured(cores: list[int], shapes: tuple[tuple[int, int, int], ...], seconds: float) -> Rates:
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    with torch.inference_mode():
        return Rates({name: max(_rate(name, *shape, seconds) for shape in shapes) for name in CLASSES}, _bandwidth(seconds))


def _rate(option: str, rows: int, out_features: int, in_features: int, seconds: float) -> float:
    """Operations per second of ``option``'s kernel on fp32 rows [rows, in]."""
    if not weight_option(option).quantised:
        tensors = {"weight": torch.randn(out_features, in_features) / in_features**0.5}
    else:
        codes = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
        tensors = {"codes": codes, "scales": torch.full((out_features,), 1e-3)}
    kernel, x = make_linear(option, tensors), torch.randn(rows, in_features)
    return 2 * rows * out_features * in_features / best_s(lambda: kernel(x), seconds)


def _bandwidth(seconds: float) -> float:
    """Bytes per second of reading a large tensor once, as a sum does."""
    numbers = torch.ones(READ_BYTES // 4)
    return READ_BYTES / best_s(lambda: numbers.sum(), seconds)


def best_s(call: Callable[[], object], seconds: float) -> float:
    """The shortest of all repetitions within ``seconds``, at least three after one that is not counted."""
    call()
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)
