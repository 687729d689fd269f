"""Bounds within a window of paces: how slow the slowest stage may be, in prefill and in a decode round.

A plan's objective is P + (n − 2)·R + D and sums over its stages, with P, R and D maxima over the stages. Fix a window for P and for the
busiest stage's round B, and the maxima become constants from below (the window's lower ends) and limits on each stage and link from
above (its upper ends). What is left is a sum over the stages of rows of ``parts`` within the limits: a shortest path through device classes
and layers (``routes``), solved exactly for all orders at once. Two things alone are relaxed, by multipliers: R is priced as
(1 − λ)·B + λ·round trip, no more than R for λ in [0, 1], and a quality budget as weight · (Σ omega − budget), no more than 0 in any plan
that keeps it. Any multipliers give a valid bound.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from llmpq.plan.candidate import BUDGET_TOLERANCE, Counts, Floats
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.parts import FIRST, LAST, LONE, MIDDLE, Hop, Part, PartMaker, Parts
from llmpq.plan.problem import Problem
from llmpq.plan.routes import Routes

# Bytes of the largest array of a min-plus product.
_CHUNK = 2**25
# The least weight of Σ omega: no figure of a bound feels it.
_LIGHT = 1e-300


@dataclass(frozen=True)
class Window:
    """Closed ranges in ms: P, the largest rest of prefill, and B, the largest whole decode round, of any stage or link."""

    prefill_from: float = 0.0
    prefill_to: float = np.inf
    busy_from: float = 0.0
    busy_to: float = np.inf


@dataclass(frozen=True)
class Node:
    """A window of one choice of micro-batches, the rows that may be in a better plan, and the multipliers λ and ``weight``."""

    batches: MicroBatches
    parts: Parts
    window: Window
    trip_share: float
    weight: float


@dataclass(frozen=True)
class Route:
    """A plan: classes and rows of its stages, the sums that its bound is made of, and its true paces and objective in ms."""

    stages: tuple[tuple[Part, int], ...]
    omega: float
    trip: float
    prefill_pace: float
    busy: float
    objective: float

    def counts(self, configs: list) -> Counts:
        return np.array([configs[part.of].counts[part.config[row]] for part, row in self.stages])

    @property
    def classes(self) -> list[int]:
        return [part.of for part, _ in self.stages]

    @property
    def ends(self) -> tuple[str, str]:
        """(embedding option, head option)."""
        names = [name for part, row in (self.stages[0], self.stages[-1])[: len(self.stages)] for name in part.ends[part.end[row]]]
        return names[0], names[1]


@dataclass(frozen=True)
class Prices:
    """Cost tables of a node: by size for a first stage, [first layer, end] for a middle one, by first layer for a last, by class alone."""

    first: dict[tuple[int, int], Floats]
    middle: dict[tuple[int, int], Floats]
    last: list[Floats]
    lone: Floats
    hop: dict[tuple[int, int], float]
    back: Floats


class Pace:
    """Bounds for the nodes of one problem."""

    def __init__(self, problem: Problem, routes: Routes, maker: PartMaker) -> None:
        self.problem, self.routes, self.maker, self.layers = problem, routes, maker, problem.layers
        self.decoding, self.rounds = float(problem.new_tokens >= 2), float(max(problem.new_tokens - 2, 0))
        budget = problem.quality_budget
        # What ``within_budget`` accepts.
        self.allowed = None if budget is None else budget + BUDGET_TOLERANCE * max(1.0, budget)
        self.hops = {batches: maker.hops(batches) for batches in problem.micro_batches}
        classes = range(routes.classes)
        self.back = {
            batches: np.array([[maker.return_ms(a, f, batches) for f in classes] for a in classes]) for batches in problem.micro_batches
        }
        self.drain = {batches: maker.drain_share(batches) for batches in problem.micro_batches}
        places = np.arange(self.layers + 1)
        gap = places[None, :] - places[:, None]
        self.gap, self.first_layer, self.backwards = np.maximum(gap, 0), np.broadcast_to(places[:, None], gap.shape), gap <= 0

    def follower(self, m: int) -> int:
        return -1 if self.problem.overlapped_sends else m

    def possible(self, hop: Hop, window: Window) -> bool:
        return not hop.own or (hop.prefill[1] <= window.prefill_to and (not self.decoding or hop.busy <= window.busy_to))

    def busy_weight(self, node: Node) -> float:
        """What a ms of B adds to the bound: the drain D is at least its share of B."""
        return self.decoding * (self.drain[node.batches] + self.rounds * (1 - node.trip_share))

    def constant(self, node: Node) -> float:
        """All of the bound that no row changes."""
        offset = 0.0 if self.allowed is None else node.weight * self.allowed
        return node.window.prefill_from + self.busy_weight(node) * node.window.busy_from - offset

    def snapped(self, node: Node) -> Node | None:
        """The node with rows and window cut to paces that some stage or link has; None where nothing is left."""
        w, parts = node.window, node.parts
        kept = {}
        for key, part in parts.items():
            keep = part.prefill_rest <= w.prefill_to
            if self.decoding:
                keep &= part.busy <= w.busy_to
            kept[key] = part.kept(keep)
        links = [hop for hop in self.hops[node.batches].values() if hop.own and self.possible(hop, w)]
        prefill = np.concatenate([*(part.prefill_rest for part in kept.values()), [hop.prefill[1] for hop in links]])
        prefill = prefill[prefill >= w.prefill_from]
        busy = np.concatenate([*(part.busy for part in kept.values()), [hop.busy for hop in links]]) if self.decoding else np.zeros(1)
        busy = busy[busy >= w.busy_from]
        if not len(prefill) or not len(busy):
            return None
        window = Window(float(prefill.min()), float(prefill.max()), float(busy.min()), float(busy.max()))
        return replace(node, parts=kept, window=window)

    def row_costs(self, node: Node, role: int, part: Part, clock: float = 1.0) -> Floats:
        """Cost of each row: [E], or [E, L + 1] by first layer for a middle stage; times count ``clock``-fold."""
        passes = self.decoding * (1 + self.rounds * node.trip_share)
        cost = clock * (part.prefill_largest + passes * part.decode_largest) + node.weight * part.end_omega
        damage = self.maker.damage[part.of]
        if role == MIDDLE:
            # Infinite where a run would go beyond the last layer, for a weight of nothing too.
            found: Floats = cost[:, None] + max(node.weight, _LIGHT) * damage[part.omega]
            return found
        start = self.layers - part.size if role == LAST else np.zeros_like(part.size)
        return cost + node.weight * damage[part.omega, start]

    def least_omega(self, node: Node) -> float:
        """The least Σ omega of all plans of the node whatever their times, exactly; inf where there is none."""
        still = replace(node, weight=1.0)
        prices = self.prices(still, clock=0.0)
        return self.cheapest(prices, self.to_go(prices))[0]

    def prices(self, node: Node, clock: float = 1.0) -> Prices:
        """The cheapest row for every place; times count ``clock``-fold."""
        length, classes = self.layers + 1, self.routes.classes
        first, middle = {}, {}
        last = [np.full(length, np.inf) for _ in range(classes)]
        lone = np.full(classes, np.inf)
        for (role, c, m), part in node.parts.items():
            cost = self.row_costs(node, role, part, clock)
            if role == LONE:
                lone[c] = cost.min(initial=np.inf)
                continue
            sizes, starts = np.unique(part.size, return_index=True)
            least = np.full((length, *cost.shape[1:]), np.inf)
            if len(sizes):
                least[sizes] = np.minimum.reduceat(cost, starts, axis=0)
            if role == FIRST:
                first[c, m] = least
            elif role == LAST:
                last[c] = least[::-1]
            else:
                table = least[self.gap, self.first_layer]
                table[self.backwards] = np.inf
                middle[c, m] = table
        passes = self.decoding * (1 + self.rounds * node.trip_share)
        hops = self.hops[node.batches]
        hop = {
            key: clock * (each.prefill[0] + passes * each.decode[0]) if self.possible(each, node.window) else np.inf
            for key, each in hops.items()
        }
        back = clock * self.decoding * self.rounds * node.trip_share * self.back[node.batches]
        return Prices(first, middle, last, lone, hop, back)

    def to_go(self, prices: Prices) -> Floats:
        """Least cost [nodes, classes of the first stage, L + 1] of the stages from a node and layer on."""
        routes = self.routes
        found = np.full((len(routes.nodes) + 1, routes.classes, self.layers + 1), np.inf)
        for step in reversed(routes.steps):
            n = step.of
            best = np.broadcast_to(prices.back[n][:, None] + prices.last[n][None, :], (len(step.source), *found.shape[1:]))
            for follower, after in self.after(prices, found, n, step.target).items():
                best = np.minimum(best, least_over_end(prices.middle[n, follower], after))
            found[step.source] = best
        return found

    def after(self, prices: Prices, to_go: Floats, n: int, targets: dict[int, np.ndarray]) -> dict[int, Floats]:
        """Least cost [K, classes, L + 1] once a stage of class ``n`` has ended, by the follower that its own times depend on."""
        found: dict[int, Floats] = {}
        for m, target in targets.items():
            value = prices.hop[n, m] + to_go[target]
            key = self.follower(m)
            found[key] = np.minimum(found[key], value) if key in found else value
        return found

    def bound(self, node: Node) -> tuple[float, Route | None]:
        """(lower bound of all plans in the window, inf where there is none; the path that it belongs to)."""
        prices = self.prices(node)
        to_go = self.to_go(prices)
        return self.bound_from(node, prices, to_go)

    def bound_from(self, node: Node, prices: Prices, to_go: Floats) -> tuple[float, Route | None]:
        best, start = self.cheapest(prices, to_go)
        if not np.isfinite(best):
            return np.inf, None
        return best + self.constant(node), self.walk(node, prices, to_go, start)

    def cheapest(self, prices: Prices, to_go: Floats) -> tuple[float, tuple[int, int, int]]:
        """(least cost of a path, its first stage: class, class that follows or -1, layers)."""
        alone = int(prices.lone.argmin())
        best, start = float(prices.lone[alone]), (alone, -1, 0)
        for (f, m), place in self.routes.start.items():
            value = prices.first[f, self.follower(m)] + prices.hop[f, m] + to_go[place, f]
            size = int(value.argmin())
            if value[size] < best:
                best, start = float(value[size]), (f, m, size)
        return best, start

    def walk(self, node: Node, prices: Prices, to_go: Floats, start: tuple[int, int, int]) -> Route:
        """The cheapest path from its first stage (class, class that follows or -1, layers) on."""
        f, m, size = start
        if m < 0:
            return self.route(node, [(LONE, f, -1, 0, self.layers)])
        stages = [(FIRST, f, m, 0, size)]
        used = tuple(int(c == f) for c in range(self.routes.classes))
        layer = size
        while True:
            place, n = self.routes.nodes[used, m], m
            best, choice = float(prices.back[n, f] + prices.last[n][layer]), (-1, self.layers)
            used = tuple(count + int(c == n) for c, count in enumerate(used))
            for other in range(self.routes.classes):
                target = self.routes.nodes.get((used, other))
                if target is not None and (n, other) in prices.hop:
                    value = prices.middle[n, self.follower(other)][layer] + prices.hop[n, other] + to_go[target, f]
                    end = int(value.argmin())
                    if value[end] < best:
                        best, choice = float(value[end]), (other, end)
            assert np.isfinite(best), place
            m, end = choice
            if m < 0:
                return self.route(node, [*stages, (LAST, n, -1, layer, self.layers)])
            stages.append((MIDDLE, n, m, layer, end))
            layer = end

    def route(self, node: Node, stages: list[tuple[int, int, int, int, int]]) -> Route:
        """The path with the cheapest row for each of (role, class, follower, first layer, end)."""
        chosen = []
        for role, c, m, layer, end in stages:
            part = node.parts[role, c, self.follower(m) if m >= 0 else -1]
            rows = np.flatnonzero(part.size == end - layer)
            piece = part.kept(part.size == end - layer)
            cost = self.row_costs(node, role, piece)
            chosen.append((part, int(rows[(cost[:, layer] if role == MIDDLE else cost).argmin()])))
        return self.priced(node.batches, tuple(chosen))

    def priced(self, batches: MicroBatches, stages: tuple[tuple[Part, int], ...]) -> Route:
        """The plan of these rows, whatever it breaks, with its true objective."""
        omega, layer = 0.0, 0
        sums, paces = np.zeros(2), np.zeros(3)
        for part, row in stages:
            omega += float(self.maker.damage[part.of][part.omega[row], layer]) + float(part.end_omega[row])
            layer += int(part.size[row])
            sums += part.prefill_largest[row], part.decode_largest[row]
            paces = np.maximum(paces, [part.prefill_rest[row], part.busy[row], part.decode_rest[row]])
        for (a, _), (b, _) in itertools.pairwise(stages):
            hop = self.hops[batches][a.of, b.of]
            sums += hop.prefill[0], hop.decode[0]
            paces = np.maximum(paces, [hop.prefill[1], hop.busy, hop.decode[1]])
        trip = float(sums[1]) + (self.back[batches][stages[-1][0].of, stages[0][0].of] if len(stages) > 1 else 0.0)
        prefill, busy, drain = map(float, paces)
        objective = float(sums[0]) + prefill + self.decoding * (float(sums[1]) + drain + self.rounds * max(busy, trip))
        return Route(stages, omega, trip, prefill, busy, objective + self.problem.theta_ms * omega)


def least_over_end(table: Floats, after: Floats) -> Floats:
    """min over k of table[i, k] + after[..., k], for every i."""
    found = np.empty(after.shape)
    rows = max(_CHUNK // (8 * after.shape[1] * table.size), 1)
    for place in range(0, len(after), rows):
        found[place : place + rows] = (after[place : place + rows, :, None, :] + table).min(axis=-1)
    return found
