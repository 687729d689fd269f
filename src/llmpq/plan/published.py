"""The baselines as their authors ran them: devices in the given order, all of them used, and the published choice of micro-batches.

The decode micro-batch is ceil(slots / stages), one micro-batch per stage; the prefill micro-batch is a divisor of it larger than 1
(method, sections 7 and 9). Where the problem lists other sizes, the nearest one not above stands in. The strategies of the same name
without ``-published`` choose order and micro-batches for themselves, so that a gain over them is not the search's.
"""

from llmpq.plan.baselines import adabits as least_damage
from llmpq.plan.baselines import best_plan, even_cut, fastest_decode_cut, highest_width, most_layers, plans_at, widths
from llmpq.plan.candidate import Assignment, Candidate, build
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.problem import Problem


def published_batches(problem: Problem, stages: int) -> list[MicroBatches]:
    """The micro-batches tried, in the order they are tried: smaller prefill chunks first."""
    slots = problem.slots
    target = -(-slots // stages)
    etas = sorted({batches.eta for batches in problem.micro_batches})
    eta = max((size for size in etas if size <= target), default=etas[0])
    offered = sorted((batches for batches in problem.micro_batches if batches.eta == eta), key=lambda batches: batches.xi)
    divisors = [batches for batches in offered if eta % batches.xi == 0 and (batches.xi > 1 or eta == 1)]
    return divisors or offered[-1:]


def published_candidates(problem: Problem) -> list[Candidate]:
    """Given order, every device (of those that share hardware the first); none where there are more devices than layers."""
    order: tuple[int, ...] = ()
    for device in range(len(problem.devices)):
        if not any(problem.excludes(device, other) for other in order):
            order = (*order, device)
    if len(order) > problem.layers:
        return []
    return [build(problem, order, batches) for batches in published_batches(problem, len(order))]


def adabits(problem: Problem, _: list[Candidate]) -> Assignment | None:
    """Least Σ omega; of the micro-batches tried, the fastest."""
    return least_damage(problem, published_candidates(problem))


def pipeedge(problem: Problem, _: list[Candidate]) -> Assignment | None:
    """The highest width that fits, the fastest slowest decode stage; of the micro-batches tried, the fastest."""
    return highest_width(problem, published_candidates(problem), fastest_decode_cut)


def uniform(problem: Problem, _: list[Candidate]) -> Assignment | None:
    """Even split at the highest width that fits; the last micro-batches tried that fit are kept, not the best."""
    for options in widths(problem):
        for candidate in reversed(published_candidates(problem)):
            found = best_plan(problem, plans_at(problem, [candidate], options, even_cut))
            if found is not None:
                return found
    return None


def even(problem: Problem, _: list[Candidate]) -> Assignment | None:
    """A plain pipeline as a serving system without a planner runs it: whole prefill micro-batches, the highest width that fits."""
    return highest_width(problem, published_candidates(problem)[-1:], plain_cut)


def plain_cut(candidate: Candidate, b: int, end: int, layers: int) -> tuple[int, ...] | None:
    """Layers split evenly; what is left over goes to the stages before the last one, from the back: the last one holds the head."""
    each, spare = divmod(layers, candidate.stages)
    sizes = tuple(each + (candidate.stages - 1 - spare <= j < candidate.stages - 1) for j in range(candidate.stages))
    return sizes if all(size <= most for size, most in zip(sizes, most_layers(candidate, b, end, layers), strict=True)) else None
