"""A plan.json read back as a decision, to start a search from it, price it on a changed problem, or look into it."""

from collections.abc import Mapping
from typing import Any

from llmpq.errors import ArtifactError
from llmpq.plan.candidate import Assignment
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.problem import Problem


def assignment_of(problem: Problem, plan: Mapping[str, Any], path: str = "plan") -> Assignment:
    """The decision of ``plan`` (a plan.json document with stages); raises ArtifactError where it names what the problem does not have."""
    numbers = {device.name: index for index, device in enumerate(problem.devices)}
    for stage in plan["stages"]:
        if stage["device"] not in numbers:
            raise ArtifactError(f"{path}: key 'stages': device '{stage['device']}' is not in the problem; it is a plan for another one")
    stages = tuple(tuple(stage["options"]) for stage in plan["stages"])
    unknown = sorted({option for stage in stages for option in stage} - set(problem.options))
    if unknown or sum(map(len, stages)) != problem.layers:
        what = f"option '{unknown[0]}'" if unknown else f"{sum(map(len, stages))} layers"
        raise ArtifactError(f"{path}: key 'stages': {what} is not what the problem has; it is a plan for another one")
    return Assignment(
        order=tuple(numbers[stage["device"]] for stage in plan["stages"]),
        batches=MicroBatches.choose(problem.slots, plan["micro_batch"]["prefill"], plan["micro_batch"]["decode"]),
        stages=stages,
        ends=(plan["stages"][0]["embedding_option"], plan["stages"][-1]["head_option"]),
    )
