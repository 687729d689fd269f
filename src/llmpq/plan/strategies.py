"""Every strategy by name: what the command line and the experiments may choose, and where its code is.

Nothing is imported before a strategy is used: the configuration of the workflow reads this list too.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Strategy:
    """``summary`` for help texts; ``code`` is ``module:function`` of ``llmpq.plan``.

    The function of a baseline takes (problem, all candidates) and returns an Assignment, or None where it has no plan. ``llmpq`` itself
    (the search) and ``offload`` (priced beside the search, not an assignment of layers to memory) are called by the planner.
    """

    summary: str
    code: str

    def load(self) -> Callable[..., Any]:
        module, function = self.code.split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(f"llmpq.plan.{module}"), function)
        return found


STRATEGIES: dict[str, Strategy] = {
    "llmpq": Strategy("exact search with a proven bound; never worse than any strategy below", "planner:plan"),
    "llmpq-transfer": Strategy(
        "from the adabits plan, moves layers and bits to faster stages while the objective falls", "transfer:transfer"
    ),
    "adabits": Strategy("least damage that fits in memory, blind to time", "baselines:adabits"),
    "pipeedge": Strategy("one width, the highest that fits; the cut with the fastest slowest decode stage", "baselines:pipeedge"),
    "uniform": Strategy("one width, the highest that fits; layers split evenly", "baselines:uniform"),
    "het": Strategy("one option, the best one; the best cut", "het:het"),
    "even": Strategy("one option, the best one; layers split evenly", "baselines:even"),
    "adabits-published": Strategy("adabits in the given device order with the published micro-batches", "published:adabits"),
    "pipeedge-published": Strategy("pipeedge in the given device order with the published micro-batches", "published:pipeedge"),
    "uniform-published": Strategy("uniform in the given device order, the last micro-batch tried", "published:uniform"),
    "even-published": Strategy("plain even pipeline in the given order at the highest precision that fits", "published:even"),
    "offload": Strategy("16 or 4 bit everywhere; layers that do not fit stream from host memory", "offload:offload"),
}

# Strategies whose plans are assignments of all layers to the devices' memory, so that they can start and guard the search.
BASELINES: tuple[str, ...] = tuple(name for name in STRATEGIES if name not in ("llmpq", "offload"))
