"""Time of one batch under the barrier schedule (docs: method, section "Makespan of a batch").

A resource is a stage or, with overlapped sends, a link. For each, ``largest`` is its time for a micro-batch of the largest size and
``rest`` its time for all the other micro-batches of the phase together, both in ms. For micro-batches of equal size the formulas are
exact (they equal an event simulation); for ragged ones they price the largest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Makespan:
    prefill_ms: float
    round_ms: float
    decode_ms: float

    @property
    def total_ms(self) -> float:
        return self.prefill_ms + self.decode_ms


def flow_ms(stages: Sequence[tuple[float, float]], links: Sequence[tuple[float, float]]) -> float:
    """One pass of all micro-batches through the pipeline: the first crosses it all, the rest follow at the slowest resource's pace.

    T = Σ_j t_j + Σ_j c_j + max over all stages and links of the rest; each entry is (largest, rest).
    """
    resources = [*stages, *links]
    return sum(largest for largest, _ in resources) + max(rest for _, rest in resources)


def round_ms(stages: Sequence[tuple[float, float]], links: Sequence[tuple[float, float]], return_ms: float) -> float:
    """Period R of the decode rounds: every resource serves all micro-batches once, and a token must come back before the next one.

    R = max( m·t_j , m·c_j , Σ_j t_j + Σ_j c_j + c_return ).
    """
    resources = [*stages, *links]
    busiest = max(largest + rest for largest, rest in resources)
    return max(busiest, sum(largest for largest, _ in resources) + return_ms)


def makespan(
    prefill: tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]],
    decode: tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]],
    return_ms: float,
    new_tokens: int,
) -> Makespan:
    """Makespan of one batch from the (largest, rest) times of (stages, links) in each phase.

    T_d = (n − 2)·R + one pass, for n >= 2 new tokens (the first token comes from prefill); 0 for n = 1.
    """
    period = round_ms(*decode, return_ms)
    decode_ms = (new_tokens - 2) * period + flow_ms(*decode) if new_tokens >= 2 else 0.0
    return Makespan(flow_ms(*prefill), period, decode_ms)
