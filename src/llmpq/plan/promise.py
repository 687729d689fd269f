"""Which candidates deserve a closer look: those with the lowest bounds of the linear relaxation, found with few programs solved.

Multipliers of one candidate's relaxation bound every other candidate with as many stages for the price of a few array operations
(``bound``). So the candidate with the lowest bound so far is looked at again and again: its own program is solved, its bound rises, and
the multipliers sharpen the others' bounds. Those that stay lowest with their own program solved come first.
"""

import heapq
from collections.abc import Sequence

from llmpq.plan.bound import Multipliers, Relaxation
from llmpq.plan.candidate import Candidate

POOL = 4  # sets of multipliers remembered per number of stages


def most_promising(relaxation: Relaxation, candidates: Sequence[Candidate], count: int, programs: int) -> list[Candidate]:
    """Up to ``count`` candidates, the lowest bound first, after at most ``programs`` linear programs; hopeless ones are left out.

    Where ``programs`` are too few, the rest of the places goes to the candidates with the lowest unproven bounds.
    """
    pool: dict[int, list[Multipliers]] = {}

    def cheap(candidate: Candidate) -> float:
        known = [relaxation.trivial(candidate), *pool.get(candidate.stages, [])]
        return max(relaxation.evaluate(candidate, prices) for prices in known)

    possible = [candidate for candidate in candidates if (candidate.capacity >= 0).all()]
    # (bound, what it rests on: 0 multipliers known at first, 1 those known by now, 2 its own, number)
    heap = [(cheap(candidate), 0, index) for index, candidate in enumerate(possible)]
    heapq.heapify(heap)
    found: list[Candidate] = []
    while heap and len(found) < count:
        bound, rests_on, index = heapq.heappop(heap)
        candidate = possible[index]
        if rests_on == 2 or programs <= 0:
            found.append(candidate)
        elif rests_on == 0 and pool.get(candidate.stages):
            heapq.heappush(heap, (max(bound, cheap(candidate)), 1, index))
        else:
            programs -= 1
            prices = relaxation.solve(candidate)
            if prices is not None:
                known = pool.setdefault(candidate.stages, [])
                known.append(prices)
                del known[:-POOL]
                heapq.heappush(heap, (max(bound, relaxation.evaluate(candidate, prices)), 2, index))
    return found
