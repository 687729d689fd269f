"""Stated efficiencies of GPU kernels: which share of a device's peak an option reaches, for two generations of kernels.

``2023`` is what LLM-PQ was measured with: LLM.int8 for 8 bit, and 3/4-bit kernels made for one row at a time, 30 to 100 times slower
than 16 bit in prefill. Turing's and Volta's shares are fitted to the published times of one OPT-30b layer (T4 and V100, batch 2 and 8;
docs/catalogue.md states the error); the other architectures are assumptions. ``today`` is an assumption throughout: kernels that widen
3, 4 and 8-bit weights on the way to the tensor cores, int8 products where there are int8 tensor cores.
"""

from dataclasses import dataclass

GENERATIONS = ("2023", "today")


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peak: ``compute`` of the operations per second, ``memory`` of the bandwidth with which weights are read.

    ``integer``: the share is of the int8 peak, not of the fp16 one.
    """

    compute: float
    memory: float
    integer: bool = False


@dataclass(frozen=True)
class Kernels:
    """One generation on one architecture: efficiency by option; ``kv_memory`` is the share of the bandwidth that attention reads at."""

    options: dict[str, Efficiency]
    kv_memory: float
    materialised_scores: bool


def kernels(generation: str, architecture: str) -> Kernels:
    """The efficiencies of ``generation`` (one of GENERATIONS) on ``architecture`` (one of ARCHITECTURES)."""
    return _2023[architecture] if generation == "2023" else _TODAY[architecture]


def _of_2023(sixteen: Efficiency, eight: Efficiency, four: Efficiency, three: Efficiency, kv_memory: float) -> Kernels:
    return Kernels({"16": sixteen, "8": eight, "4": four, "3": three}, kv_memory, materialised_scores=True)


# Fitted by hand: prefill gives `compute`, decode at batch 2 `memory`, its growth to batch 8 `kv_memory`.
_TURING = _of_2023(
    Efficiency(0.30, 0.73), Efficiency(0.235, 0.355, integer=True), Efficiency(0.0070, 0.19), Efficiency(0.0088, 0.19), kv_memory=0.145
)
_VOLTA = _of_2023(Efficiency(0.60, 0.62), Efficiency(0.48, 0.10), Efficiency(0.0183, 0.19), Efficiency(0.0247, 0.14), kv_memory=0.125)
# Assumed: Pascal like Volta in shares of its own, far lower, peak (3/4-bit kernels do not use tensor cores: the same work per second and
# per GB/s of Volta); newer ones like Volta, with LLM.int8 on their int8 tensor cores like Turing.
_PASCAL = _of_2023(Efficiency(0.60, 0.62), Efficiency(0.40, 0.10), Efficiency(0.075, 0.19), Efficiency(0.10, 0.14), kv_memory=0.125)
_NEWER = _of_2023(
    Efficiency(0.60, 0.62), Efficiency(0.235, 0.20, integer=True), Efficiency(0.0120, 0.19), Efficiency(0.0160, 0.14), kv_memory=0.125
)
_2023 = {"pascal": _PASCAL, "volta": _VOLTA, "turing": _TURING, "ampere": _NEWER, "ada": _NEWER, "hopper": _NEWER}


def _of_today(compute: float, integer: float | None) -> Kernels:
    """Weight-only options reach 16 bit's share of the peak less what widening costs; decode is bound by the bytes of the weights."""
    options = {"16": Efficiency(compute, 0.80), "8": Efficiency(0.92 * compute, 0.75)}
    if integer is not None:
        options["w8a8"] = Efficiency(integer, 0.75, integer=True)
    options |= {"4": Efficiency(0.88 * compute, 0.70), "3": Efficiency(0.75 * compute, 0.60)}
    return Kernels(options, kv_memory=0.6, materialised_scores=False)


_TODAY = {
    "pascal": _of_today(0.60, None),
    "volta": _of_today(0.60, None),
    "turing": _of_today(0.40, 0.35),
    "ampere": _of_today(0.65, 0.50),
    "ada": _of_today(0.65, 0.50),
    "hopper": _of_today(0.60, 0.50),
}
ARCHITECTURES = tuple(_TODAY)
