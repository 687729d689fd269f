"""Event simulation of requests that vLLM batches (llmpq.schedule.vllm), with the costs that a profile through vLLM gives.

A call with prompt tokens is priced as one of prefill with as many rows as its tokens, the decode steps in it among them, make up of the
longest prompt; any other as a decode call of its rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmpq.schedule.vllm import VllmCall, VllmScheduler, run_calls
from llmpq.simulate.line import Line

if TYPE_CHECKING:
    from llmpq.simulate.run import Request


class VllmRun:
    """The work of ``run_calls``, priced; afterwards as llmpq.simulate.run has its runs."""

    def __init__(self, line: Line, requests: Sequence["Request"]) -> None:
        self.line, self.requests = line, requests
        self.prefill_ms = 0.0
        self.finished_ms, self.tokens = [0.0] * len(requests), [request.new_tokens for request in requests]
        self._without = set(range(len(requests)))

    def serve(self, slots: int, call_tokens: int, stages: int) -> None:
        """Run it all."""
        self._longest = max(request.prompt_tokens for request in self.requests)
        sizes = [(request.prompt_tokens, request.new_tokens) for request in self.requests]
        run_calls(VllmScheduler(sizes, slots, call_tokens), stages, self)

    def start(self, call: VllmCall) -> None:
        if call.prompt_tokens:
            tokens = sum(call.tokens.values())
            self.line.submit("prefill", 0, max(1.0, tokens / self._longest), min(tokens, self._longest))
        else:
            self.line.submit("decode", 0, len(call.tokens), call.context)

    def wait(self, call: VllmCall) -> None:
        self.line.collect()

    def finished(self, call: VllmCall, done: Sequence[int]) -> None:
        if self._without:
            self._without.difference_update(call.complete)
            self.prefill_ms = self.line.arrived
        for number in done:
            self.finished_ms[number] = self.line.arrived
