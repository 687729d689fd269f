"""Quality for nothing: where a quality budget leaves the sum of omega free, take better options that cost no time and fit in memory."""

from llmpq.plan.assign import assign
from llmpq.plan.candidate import Assignment, build
from llmpq.plan.problem import Problem


def polish(problem: Problem, assignment: Assignment) -> Assignment:
    """The same cut and micro-batches, no slower, with no more damage: layers and ends improve one by one where that loses no time.

    Under a quality budget the program minimises time alone, so stages that wait for the slowest one get arbitrary options. Greedy, the
    largest gain in omega first; with omega in the objective (theta) the optimum leaves nothing to gain here.
    """
    candidate = build(problem, assignment.order, assignment.batches)
    counts = assignment.counts(problem.options)
    end = candidate.end(assignment.ends)
    limit = candidate.makespan(counts, end).total_ms
    owner = [j for j, stage in enumerate(assignment.stages) for _ in stage]
    chosen = [problem.options.index(option) for stage in assignment.stages for option in stage]
    omega = [problem.omega[option] for option in problem.options]
    moves = [
        (omega[b][i] - omega[now][i], i, b)
        for i, now in enumerate(chosen)
        for b in range(len(omega))
        if candidate.available[owner[i], b] and omega[b][i] < omega[now][i]
    ]
    # The ends are one more mover, behind the last layer; its choices are pairs of end options.
    ends, gains = len(chosen), candidate.end_omega - candidate.end_omega[end]
    moves = sorted(moves + [(float(gains[k]), ends, k) for k in range(len(gains)) if gains[k] < 0])
    settled: set[int] = set()
    for _, i, b in moves:
        # Largest gain first: the first move of a layer that works is its best one.
        if i in settled:
            continue
        trial, pair = counts.copy(), b if i == ends else end
        if i < ends:
            trial[owner[i], chosen[i]] -= 1
            trial[owner[i], b] += 1
        if candidate.fits(trial, pair) and candidate.makespan(trial, pair).total_ms <= limit:
            counts, end = trial, pair
            settled.add(i)
    improved = Assignment(assignment.order, assignment.batches, assign(problem, counts), candidate.ends[end])
    return improved if improved.omega_sum(problem) < assignment.omega_sum(problem) else assignment
