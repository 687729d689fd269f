"""A recorded simulation as the calls and messages of each stage, in the form of a measured run."""

from llmpq.simulate.run import Simulation
from llmpq.trace import Call, Message


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
