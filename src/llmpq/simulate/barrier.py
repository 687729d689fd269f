"""Event simulation of a plan under the barrier schedule, written apart from the planner's formulas.

Stages and links are resources that serve one micro-batch at a time, first come, first served. Prefill: all chunks wait at stage 0 and
pass through the pipeline. When the last chunk has left the last stage, decode begins: each micro-batch goes round and round, and its next
token starts only after its last one has come back over the return link; the first token came from prefill, so there are n − 1 rounds.
With overlapped sends a stage goes on while its result travels; with blocking sends it is occupied until the send is over.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmpq.plan.microbatch import MicroBatches

Table = Mapping[int, float]


@dataclass(frozen=True)
class Event:
    """One micro-batch occupying one resource (``stage 0``, ``link 0`` = stage 0 → 1, ``return``); times in ms since the batch began."""

    resource: str
    phase: str
    micro_batch: int
    size: int
    round: int
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Pipeline:
    """What to simulate, in ms by micro-batch size: per phase one table per stage and per link (stage j → j+1), and the way back."""

    stages: Mapping[str, Sequence[Table]]
    links: Mapping[str, Sequence[Table]]
    back: Table
    overlapped_sends: bool = True


@dataclass(frozen=True)
class Simulation:
    prefill_ms: float
    decode_ms: float
    events: tuple[Event, ...]

    @property
    def total_ms(self) -> float:
        return self.prefill_ms + self.decode_ms


@dataclass(frozen=True)
class _Step:
    resource: str
    label: str
    ms: float


class _Clock:
    """Runs jobs over first-come-first-served resources; a job is a micro-batch with its remaining steps."""

    def __init__(self, phase: str, start_ms: float) -> None:
        self.phase, self.start_ms = phase, start_ms
        self.waiting: dict[str, deque[int]] = {}
        self.busy: set[str] = set()
        self.agenda: list[tuple[float, int, int]] = []
        self.order = itertools.count()
        self.events: list[Event] = []

    def run(self, routes: Sequence[Sequence[_Step]], sizes: Sequence[int], steps_per_round: int) -> float:
        """Serve every route to its end; returns the time of the last event after the start."""
        self.routes, self.sizes, self.per_round = routes, sizes, steps_per_round
        self.position = [0] * len(routes)
        now = self.start_ms
        for job in range(len(routes)):
            self.arrive(job, now)
        while self.agenda:
            now, _, job = heapq.heappop(self.agenda)
            step = self.routes[job][self.position[job]]
            self.busy.discard(step.resource)
            self.position[job] += 1
            following = self.position[job]
            # A blocking send goes on at once on the stage that holds it; nothing may slip in between.
            if following < len(self.routes[job]) and self.routes[job][following].resource == step.resource:
                self.begin(job, now)
                continue
            if following < len(self.routes[job]):
                self.arrive(job, now)
            self.serve(step.resource, now)
        return now - self.start_ms

    def arrive(self, job: int, now: float) -> None:
        resource = self.routes[job][self.position[job]].resource
        self.waiting.setdefault(resource, deque()).append(job)
        self.serve(resource, now)

    def serve(self, resource: str, now: float) -> None:
        if resource not in self.busy and self.waiting.get(resource):
            self.begin(self.waiting[resource].popleft(), now)

    def begin(self, job: int, now: float) -> None:
        place = self.position[job]
        step = self.routes[job][place]
        self.busy.add(step.resource)
        heapq.heappush(self.agenda, (now + step.ms, next(self.order), job))
        self.events.append(Event(step.label, self.phase, job, self.sizes[job], place // self.per_round, now, now + step.ms))


def _steps(pipeline: Pipeline, phase: str, size: int) -> list[_Step]:
    """One micro-batch's way from stage 0 to the end of the last stage."""
    steps = []
    stages, links = pipeline.stages[phase], pipeline.links[phase]
    for j, table in enumerate(stages):
        steps.append(_Step(f"stage {j}", f"stage {j}", table[size]))
        if j < len(stages) - 1:
            holder = f"link {j}" if pipeline.overlapped_sends else f"stage {j}"
            steps.append(_Step(holder, f"link {j}", links[j][size]))
    return steps


def simulate_pipeline(pipeline: Pipeline, batches: MicroBatches, new_tokens: int) -> Simulation:
    """Simulate one batch: prefill of every chunk, then ``new_tokens`` − 1 decode rounds."""
    clock = _Clock("prefill", 0.0)
    routes = [_steps(pipeline, "prefill", size) for size in batches.prefill]
    prefill_ms = clock.run(routes, batches.prefill, len(routes[0]))
    if new_tokens < 2:
        return Simulation(prefill_ms, 0.0, tuple(clock.events))
    later = _Clock("decode", prefill_ms)
    routes = []
    for size in batches.decode:
        once = _steps(pipeline, "decode", size)
        back = [_Step("return", "return", pipeline.back[size])] if len(pipeline.stages["decode"]) > 1 else []
        routes.append((once + back) * (new_tokens - 2) + once)
    decode_ms = later.run(routes, batches.decode, len(_steps(pipeline, "decode", batches.eta)) + len(back))
    return Simulation(prefill_ms, decode_ms, tuple(clock.events + later.events))


def simulate(problem: Mapping[str, Any], plan: Mapping[str, Any]) -> Simulation:
    """Simulate one batch of ``plan`` (plan.json) with the tables of ``problem`` (problem.json)."""
    slots = problem["workload"]["slots"]
    batches = MicroBatches.choose(slots, plan["micro_batch"]["prefill"], plan["micro_batch"]["decode"])
    return simulate_pipeline(pipeline_of(problem, plan, batches), batches, problem["workload"]["new_tokens"])


def pipeline_of(problem: Mapping[str, Any], plan: Mapping[str, Any], batches: MicroBatches) -> Pipeline:
    """The tables of a plan's stages and links, summed from the problem's."""
    devices = {device["name"]: device for device in problem["devices"]}
    links = {(link["from"], link["to"]): link for link in problem["links"]}
    names = [stage["device"] for stage in plan["stages"]]

    def message_ms(a: str, b: str, payload_bytes: float) -> float:
        return links[a, b]["alpha_ms"] + payload_bytes / links[a, b]["bytes_per_ms"]

    def stage_table(stage: Mapping[str, Any], phase: str) -> dict[int, float]:
        device = devices[stage["device"]]
        parts = [device["options"][option] for option in stage["options"]]
        chosen = ((end, stage[f"{end}_option"]) for end in ("embedding", "head"))
        parts += [device[end][option] for end, option in chosen if option is not None]
        overhead = device.get("overhead_ms", {}).get(phase, 0.0)
        return {size: overhead + sum(part[f"{phase}_ms"][str(size)] for part in parts) for size in set(batches.sizes(phase))}

    def link_table(a: str, b: str, phase: str) -> dict[int, float]:
        tokens = problem["workload"]["prompt_tokens"] if phase == "prefill" else 1
        return {size: message_ms(a, b, size * tokens * problem["activation_bytes_per_token"]) for size in set(batches.sizes(phase))}

    back = {size: message_ms(names[-1], names[0], size * problem["token_bytes"]) if len(names) > 1 else 0.0 for size in set(batches.decode)}
    return Pipeline(
        stages={phase: [stage_table(stage, phase) for stage in plan["stages"]] for phase in ("prefill", "decode")},
        links={phase: [link_table(a, b, phase) for a, b in itertools.pairwise(names)] for phase in ("prefill", "decode")},
        back=back,
        overlapped_sends=problem["overlapped_sends"],
    )


def with_simulated_total(problem: Mapping[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Fill ``predicted.simulated_total_s`` of a plan body: seconds for all requests of the workload."""
    workload = problem["workload"]
    seconds = simulate(problem, plan).total_ms / 1000 * (workload["requests"] // workload["slots"])
    return {**plan, "predicted": {**plan["predicted"], "simulated_total_s": seconds}}
