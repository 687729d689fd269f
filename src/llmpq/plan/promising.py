"""Good plans fast: within a window of paces, the cheapest cut when every range of layers pays the mean damage of its own layers.

Not a bound: the mean over a range stands in for the best assignment of its options to its layers, which ``assign`` makes afterwards.
Under a quality budget the weight of Σ omega is found by bisection.
"""

from collections.abc import Iterator

import numpy as np

from llmpq.plan.candidate import Counts, Floats
from llmpq.plan.pace import Case, Window, stage_costs
from llmpq.plan.problem import Problem

BISECTIONS = 7


def promising_counts(problem: Problem, case: Case, window: Window, omega: Floats, weight: float) -> Iterator[Counts]:
    """Counts [N, B] of plans worth pricing; ``weight`` is where the search for a budget's weight begins (ms)."""
    tables = _Tables(case, window, omega)
    if problem.quality_budget is None:
        found = tables.best(problem.theta_ms)
        if found is not None:
            yield found[0]
        return
    low, high = 0.0, max(weight, 1.0)
    for _ in range(BISECTIONS):
        found = tables.best(high)
        if found is None:
            return
        if found[1] + case.end_omega <= problem.quality_budget:
            break
        low, high = high, high * 8
    for _ in range(BISECTIONS):
        found = tables.best((low + high) / 2)
        assert found is not None
        # The mean over-states the damage after assignment, so plans a little above the budget may keep it.
        if found[1] + case.end_omega <= problem.quality_budget:
            high = (low + high) / 2
        else:
            low = (low + high) / 2
        yield found[0]


class _Tables:
    """Per kind of stage and number of layers: the costs of its configurations in the window, and their damage by first layer."""

    def __init__(self, case: Case, window: Window, omega: Floats) -> None:
        self.case, self.layers = case, case.layers
        self.sums = np.concatenate([np.zeros((1, omega.shape[1])), np.cumsum(omega, axis=0)])
        self.entries: dict[int, list[tuple[int, Counts, Floats, Floats]]] = {}
        for stage in case.stages:
            if id(stage) in self.entries:
                continue
            values = stage_costs(case, stage, window, 0.0, np.zeros(omega.shape[1]))[0]
            usable = np.flatnonzero(np.isfinite(values))
            configs, entries = stage.times.configs, []
            for size in np.unique(configs.size[usable]):
                rows = usable[configs.size[usable] == size]
                means = (self.sums[size:] - self.sums[:-size]) / size
                entries.append((int(size), configs.counts[rows], values[rows], configs.counts[rows] @ means.T))
            self.entries[id(stage)] = entries

    def best(self, weight: float) -> tuple[Counts, float] | None:
        """(counts [N, B], estimate of Σ omega) of the cheapest path at this weight of Σ omega."""
        known = {key: self._by_range(entries, weight) for key, entries in self.entries.items()}
        behind = np.where(np.arange(self.layers + 1) == 0, 0.0, np.inf)
        reach, steps = [behind], []
        for stage in self.case.stages:
            total, came = np.full(self.layers + 1, np.inf), np.zeros((self.layers + 1, 2), dtype=int)
            for place, (size, costs, _) in enumerate(known[id(stage)]):
                value = reach[-1][: self.layers + 1 - size] + costs
                better = value < total[size:]
                total[size:][better] = value[better]
                came[size:][better] = place, size
            reach.append(total)
            steps.append(came)
        if not np.isfinite(reach[-1][-1]):
            return None
        return self._walk(known, steps)

    def _by_range(self, entries: list[tuple[int, Counts, Floats, Floats]], weight: float) -> list[tuple[int, Floats, np.ndarray]]:
        """Per size: the least cost by first layer and which configuration it is."""
        found = []
        for size, _, values, damage in entries:
            cost = values[:, None] + weight * damage
            row = cost.argmin(axis=0)
            found.append((size, cost[row, np.arange(cost.shape[1])], row))
        return found

    def _walk(self, known: dict[int, list[tuple[int, Floats, np.ndarray]]], steps: list[np.ndarray]) -> tuple[Counts, float]:
        counts, damage, end = [], 0.0, self.layers
        for stage, came in zip(reversed(self.case.stages), reversed(steps), strict=True):
            place, size = came[end]
            row = known[id(stage)][place][2][end - size]
            entry = self.entries[id(stage)][place]
            counts.append(entry[1][row])
            damage += float(entry[3][row, end - size])
            end -= size
        return np.array(counts[::-1]), damage
