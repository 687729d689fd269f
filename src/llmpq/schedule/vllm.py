"""How vLLM batches (its v1 scheduler, version 0.32, without speculation, prefix caching and preemption): which requests a call has.

Every call takes from the resident requests, in the order in which they came, whatever they can go on with: a token each where the last one
is known, or the rest of their prompt, of which as much as the call's tokens allow. What is left of these goes to waiting requests while
fewer than ``slots`` are resident. A pipeline of n stages has n calls under way, so that a decode call has the requests that no other call
has. (``Scheduler.schedule`` and ``EngineCore.step_with_batch_queue`` in vLLM's sources.) Pure numbers, no torch.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class VllmCall:
    """``tokens`` by request number; ``prompt_tokens`` of them belong to prompts; ``context`` is the most that a request attends to.

    ``complete`` are the requests of which it has all that was left, and which it therefore gives a new token.
    """

    tokens: dict[int, int]
    prompt_tokens: int
    context: int
    complete: tuple[int, ...]


class VllmScheduler:
    """``sizes`` are (prompt tokens, new tokens that it will make) of the requests, all there from the beginning."""

    def __init__(self, sizes: Sequence[tuple[int, int]], slots: int, call_tokens: int) -> None:
        self._sizes, self._slots, self._most = sizes, slots, call_tokens
        self._waiting = deque(range(len(sizes)))
        self._resident: list[int] = []
        self._computed = [0] * len(sizes)
        self._known = [prompt for prompt, _ in sizes]

    def schedule(self) -> VllmCall | None:
        """The next call; None where no request can go on."""
        left, tokens = self._most, dict[int, int]()
        for number in self._resident:
            count = min(self._known[number] - self._computed[number], left)
            if count > 0:
                tokens[number] = count
                left -= count
        while left > 0 and self._waiting and len(self._resident) < self._slots:
            number = self._waiting.popleft()
            self._resident.append(number)
            tokens[number] = min(self._known[number], left)
            left -= tokens[number]
        if not tokens:
            return None
        of_prompts = sum(count for number, count in tokens.items() if self._computed[number] < self._sizes[number][0])
        for number, count in tokens.items():
            self._computed[number] += count
        complete = tuple(number for number in tokens if self._computed[number] == self._known[number])
        return VllmCall(tokens, of_prompts, max(self._computed[number] for number in tokens), complete)

    def finish(self, call: VllmCall) -> list[int]:
        """The call has come back, and its complete requests have a new token; returns those that are done."""
        done = []
        for number in call.complete:
            prompt, new = self._sizes[number]
            self._known[number] += 1
            if self._known[number] == prompt + new:
                done.append(number)
        if done:
            self._resident = [number for number in self._resident if number not in done]
        return done


class CallWork(Protocol):
    """Whoever makes the calls; they come back in the order in which they were made."""

    def start(self, call: VllmCall) -> None:
        """Make a call."""

    def wait(self, call: VllmCall) -> None:
        """Wait for the oldest call, which was this one."""

    def finished(self, call: VllmCall, done: Sequence[int]) -> None:
        """The complete requests of the call have a new token, and some are done."""


def run_calls(scheduler: VllmScheduler, stages: int, work: CallWork) -> None:
    """All requests, with as many calls under way as there are stages."""
    under_way: deque[VllmCall] = deque()
    while True:
        call = scheduler.schedule() if len(under_way) < stages else None
        if call is not None:
            work.start(call)
            under_way.append(call)
            continue
        if not under_way:
            return
        oldest = under_way.popleft()
        work.wait(oldest)
        work.finished(oldest, scheduler.finish(oldest))


def call_tokens(prefill_rows: int, prompt_tokens: int, slots: int) -> int:
    """Tokens of a call at most (``max_num_batched_tokens``), for prefill chunks of so many prompts; a token for every slot at least."""
    return max(prefill_rows * prompt_tokens, slots)
