"""Which rows of a node may still be in a better plan: those on a path whose bound is below the cutoff.

A row's least path is what leads to it, itself, and what follows it; where even that reaches the cutoff, so does every plan of the window
that uses the row, and the windows within this one can do without it.
"""

from dataclasses import replace

import numpy as np

from llmpq.plan.candidate import Floats
from llmpq.plan.pace import Node, Pace, Prices, least_over_end
from llmpq.plan.parts import FIRST, LAST, LONE, Part


def pruned(pace: Pace, node: Node, prices: Prices, to_go: Floats, cutoff: float) -> Node:
    """The node without rows whose every path costs ``cutoff`` or more."""
    room = cutoff - pace.constant(node)
    reach = so_far(pace, prices)
    middle, last = around(pace, prices, reach, to_go)
    kept = {}
    for key, part in node.parts.items():
        role, c, m = key
        cost = pace.row_costs(node, role, part)
        if role == FIRST:
            follow = [other for (f, other) in pace.routes.start if f == c and pace.follower(other) == m]
            rest = [prices.hop[c, other] + to_go[pace.routes.start[c, other], c] for other in follow]
            keep = cost + np.min(rest, axis=0)[part.size] < room if rest else np.zeros(len(cost), dtype=bool)
        elif role == LAST:
            keep = cost + last[c][pace.layers - part.size] < room
        elif role == LONE:
            keep = cost < room
        else:
            keep = _middle_kept(cost, part, middle.get((c, m)), room)
        kept[key] = part.kept(keep)
    return replace(node, parts=kept)


def _middle_kept(cost: Floats, part: Part, around_it: Floats | None, room: float) -> np.ndarray:
    if around_it is None or not len(cost):
        return np.zeros(len(cost), dtype=bool)
    starts = np.arange(cost.shape[1])[None, :]
    ends = np.minimum(starts + part.size[:, None], cost.shape[1] - 1)
    # Where a run would end beyond the last layer its cost is infinite.
    kept: np.ndarray = (cost + around_it[starts, ends]).min(axis=1) < room
    return kept


def so_far(pace: Pace, prices: Prices) -> Floats:
    """Least cost [nodes, classes of the first stage, L + 1] of the stages before a node."""
    routes = pace.routes
    found = np.full((len(routes.nodes) + 1, routes.classes, pace.layers + 1), np.inf)
    for (f, m), place in routes.start.items():
        found[place, f] = np.minimum(found[place, f], prices.first[f, pace.follower(m)] + prices.hop[f, m])
    for step in routes.steps:
        ended: dict[int, Floats] = {}
        for m, target in step.target.items():
            key = pace.follower(m)
            if key not in ended:
                ended[key] = least_over_end(prices.middle[step.of, key].T, found[step.source])
            found[target] = np.minimum(found[target], ended[key] + prices.hop[step.of, m])
    return found


def around(pace: Pace, prices: Prices, reach: Floats, to_go: Floats) -> tuple[dict[tuple[int, int], Floats], Floats]:
    """Least cost of all but one middle stage, by (class, follower) and [first layer, end]; and of all but a last, [class, first layer]."""
    length, classes = pace.layers + 1, pace.routes.classes
    middle: dict[tuple[int, int], Floats] = {}
    last = np.full((classes, length), np.inf)
    for step in pace.routes.steps:
        n, before = step.of, reach[step.source]
        last[n] = np.minimum(last[n], (before + prices.back[n][None, :, None]).min(axis=(0, 1)))
        for follower, after in pace.after(prices, to_go, n, step.target).items():
            found = middle.setdefault((n, follower), np.full((length, length), np.inf))
            for a, b in zip(before.reshape(-1, length), after.reshape(-1, length), strict=True):
                if np.isfinite(a).any() and np.isfinite(b).any():
                    np.minimum(found, a[:, None] + b[None, :], out=found)
    return middle, last
