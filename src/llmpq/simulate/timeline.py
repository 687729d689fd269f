"""A recorded simulation in the form of a measured run: the calls and messages of each stage, and their Chrome trace."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmpq.simulate.run import Simulation
from llmpq.trace import Call, Message, chrome_trace


def stage_calls(simulation: Simulation, stages: int) -> list[list[Call]]:
    """Per stage its calls; seconds since the beginning, all of them work."""
    found: list[list[Call]] = [[] for _ in range(stages)]
    for event in simulation.events:
        if event.resource.startswith("stage "):
            start, end = event.start_ms / 1000, event.end_ms / 1000
            call = Call(event.phase, event.micro_batch, event.step, event.rows, event.tokens, start, end, end - start)
            found[int(event.resource.removeprefix("stage "))].append(call)
    return found


def stage_messages(simulation: Simulation, stages: int) -> list[list[Message]]:
    """Per stage the messages that reach it, for as long as they are on the link; what comes back to stage 0 are ``tokens``."""
    found: list[list[Message]] = [[] for _ in range(stages)]
    for event in simulation.events:
        start, end = event.start_ms / 1000, event.end_ms / 1000
        if event.resource == "return":
            found[0].append(Message("tokens", event.micro_batch, event.rows, start, end, awaited=True))
        elif event.resource.startswith("link "):
            receiver = int(event.resource.removeprefix("link ")) + 1
            found[receiver].append(Message(event.phase, event.micro_batch, event.rows, start, end, awaited=True))
    return found


def simulated_trace(stages: Sequence[Mapping[str, Any]], simulation: Simulation, other: Mapping[str, Any]) -> dict[str, Any]:
    """The Chrome trace; ``stages`` are those of plan.json (device, first_layer, options), ``other`` goes into ``otherData``."""
    calls, messages = stage_calls(simulation, len(stages)), stage_messages(simulation, len(stages))
    rows = [
        {
            "rank": rank,
            "device": stage["device"],
            "first_layer": stage["first_layer"],
            "layers": len(stage["options"]),
            "calls": calls[rank],
            "messages": messages[rank],
        }
        for rank, stage in enumerate(stages)
    ]
    return chrome_trace(rows, 0.0, {**other, "source": "simulated"}, simulated=True)
