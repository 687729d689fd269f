"""The integer program of ``milp`` within a window of paces (``pace``): what a search still has to solve of a candidate."""

import math

import pyomo.environ as pyo

from llmpq.plan.milp import Model, stage_ms
from llmpq.plan.pace import Window

# Relative room for rounding and the solvers' tolerances at the window's ends.
ROOM = 1e-6


def keep_pace(m: Model, window: Window) -> None:
    """Only plans whose prefill pace and decode pace lie in ``window`` are wanted: bounds and a row per stage are added to ``m``."""
    if math.isinf(window.prefill_to) and math.isinf(window.round_to):
        return
    m.prefill_rest.setlb(window.prefill_from * (1 - ROOM))
    m.prefill_rest.setub(window.prefill_to * (1 + ROOM))
    if m.candidate.value.new_tokens < 2:
        return
    m.round.setlb(window.round_from * (1 - ROOM))
    limit = window.round_to * (1 + ROOM)

    def busy(m: Model, j: int) -> object:
        return stage_ms(m, "decode", j, "largest") + stage_ms(m, "decode", j, "rest") <= limit

    m.round_limit = pyo.Constraint(m.stages, rule=busy)
