"""Better prices: maximise a concave, piecewise linear bound by cutting planes within a box around the best prices so far.

Every evaluation gives the bound and its slope, which together bound the bound itself from above everywhere; the next prices maximise that
model. A handful of prices converge in some fifteen evaluations (Kelley's method; the box keeps its first steps sensible).
"""

from collections.abc import Callable

import highspy
import numpy as np

from llmpq.plan.candidate import Floats

# Relative: closer to the model's maximum than this is close enough.
ENOUGH = 2e-4
# Where the model stays below this share of the target, better prices are for smaller windows to find.
HOPELESS = 0.75


def ascend(
    evaluate: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    radius: Floats,
    lowest: Floats,
    highest: Floats,
    steps: int,
    target: float,
) -> tuple[float, Floats]:
    """(best value, where) of ``evaluate`` (value and slope [n]) after at most ``steps`` evaluations; less once ``target`` is reached.

    ``radius`` [n] is the box's half width, ``lowest`` and ``highest`` [n] the values allowed. Also ends where no prices can reach
    ``target`` soon: the model's own maximum is below it and little above the best.
    """
    best, where, point, model = -np.inf, start, start, _Model(len(start))
    for step in range(steps):
        value, slope = evaluate(point)
        if value > best:
            best, where = value, point
        if best >= target or not np.isfinite(value) or step == steps - 1:
            break
        model.cut(slope, value - float(slope @ point))
        found = model.best(np.maximum(where - radius, lowest), np.minimum(where + radius, highest))
        if found is None or found[0] - best < ENOUGH * abs(best) or found[0] < HOPELESS * target:
            break
        point = found[1]
    return best, where


class _Model:
    """Columns: the prices, then the value that all cuts allow."""

    def __init__(self, prices: int) -> None:
        self.solver = highspy.Highs()
        self.solver.setOptionValue("output_flag", False)
        self.solver.setOptionValue("threads", 1)
        self.solver.setOptionValue("presolve", "off")
        self.columns = np.arange(prices + 1, dtype=np.int32)
        for _ in range(prices):
            self.solver.addVar(0.0, 0.0)
        self.solver.addVar(-highspy.kHighsInf, highspy.kHighsInf)
        self.solver.changeColCost(prices, -1.0)

    def cut(self, slope: Floats, height: float) -> None:
        self.solver.addRow(-highspy.kHighsInf, height, len(self.columns), self.columns, np.append(-slope, 1.0))

    def best(self, lower: Floats, upper: Floats) -> tuple[float, Floats] | None:
        for column, (low, high) in enumerate(zip(lower, upper, strict=True)):
            self.solver.changeColBounds(column, low, high)
        self.solver.run()
        if self.solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        values = np.array(self.solver.getSolution().col_value)
        return float(values[-1]), values[:-1]
