"""What a call of a plan's pipeline costs on every stage and link: the tables of problem.json, summed over what each stage holds."""

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from llmpq.plan.microbatch import MicroBatches

PHASES = ("prefill", "decode")

Table = Mapping[int, float]


class Route(NamedTuple):
    """Milliseconds of one call: on every stage, on every link (stage j → j + 1), and of its result on the way back to stage 0."""

    stages: tuple[float, ...]
    links: tuple[float, ...]
    back: float


class Costs(Protocol):
    """A pipeline whose calls have a price."""

    @property
    def overlapped_sends(self) -> bool:
        """Whether a stage goes on while its result travels; else it is occupied until the send is over."""

    def route(self, phase: str, rows: float, length: int) -> Route:
        """The price of a call of ``rows`` requests: prompts padded to ``length`` tokens, or a token each with ``length`` attended to."""


@dataclass(frozen=True)
class Pipeline:
    """Costs by micro-batch size alone, in ms, as the planner's formula has them: per phase one table per stage and link, and the way back
    of a decode call (first tokens come back at no cost)."""

    stages: Mapping[str, Sequence[Table]]
    links: Mapping[str, Sequence[Table]]
    back: Table
    overlapped_sends: bool = True

    def route(self, phase: str, rows: float, length: int) -> Route:
        """See Costs; the length counts for nothing."""
        stages, links = (tuple(table[int(rows)] for table in tables[phase]) for tables in (self.stages, self.links))
        return Route(stages, links, self.back[int(rows)] if phase == "decode" else 0.0)


def pipeline_of(problem: Mapping[str, Any], plan: Mapping[str, Any], batches: MicroBatches) -> Pipeline:
    """The tables of a plan's stages and links for the problem's own workload, whose sizes are those of ``batches``."""
    parts = _Parts(problem, plan)
    lengths = {"prefill": problem["workload"]["prompt_tokens"], "decode": 1}

    def stage_table(stage: int, phase: str) -> dict[int, float]:
        tables = parts.tables(stage, f"{phase}_ms")
        return {size: parts.overhead_ms(stage, phase) + sum(table[str(size)] for table in tables) for size in set(batches.sizes(phase))}

    def link_table(link: int, phase: str) -> dict[int, float]:
        return {size: parts.link_ms(link, size * lengths[phase]) for size in set(batches.sizes(phase))}

    return Pipeline(
        stages={phase: [stage_table(j, phase) for j in range(parts.stages)] for phase in PHASES},
        links={phase: [link_table(j, phase) for j in range(parts.stages - 1)] for phase in PHASES},
        back={size: parts.back_ms(size) for size in set(batches.decode)},
        overlapped_sends=problem["overlapped_sends"],
    )


class LengthCosts:
    """Costs of a plan's calls by rows and length, from the tables that problem.json has by length.

    Between tabulated sizes and lengths they are linear; fewer rows than tabulated cost as much as the smallest size, more in proportion to
    the largest, and longer calls go on at the last slope. A problem without such tables has a prefill call cost in proportion to its
    length, and a decode call the same at every context.
    """

    def __init__(self, problem: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        self._parts = _Parts(problem, plan)
        self.overlapped_sends: bool = problem["overlapped_sends"]
        grids = {phase: [_grid(problem, self._parts, stage, phase) for stage in range(self._parts.stages)] for phase in PHASES}
        self._grids: Mapping[str, Sequence[_Grid]] = grids

    def route(self, phase: str, rows: float, length: int) -> Route:
        """See Costs."""
        parts = self._parts
        sent = rows * (length if phase == "prefill" else 1)
        return Route(
            tuple(parts.overhead_ms(j, phase) + grid.at(rows, length) for j, grid in enumerate(self._grids[phase])),
            tuple(parts.link_ms(j, sent) for j in range(parts.stages - 1)),
            parts.back_ms(rows),
        )


class _Parts:
    """A plan's stages and links, looked up in its problem."""

    def __init__(self, problem: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        self._problem, self._stages = problem, plan["stages"]
        devices = {device["name"]: device for device in problem["devices"]}
        self._devices = [devices[stage["device"]] for stage in self._stages]
        links = {(link["from"], link["to"]): link for link in problem["links"]}
        names = [stage["device"] for stage in self._stages]
        self._links = [links[pair] for pair in itertools.pairwise(names)]
        self._back = links[names[-1], names[0]] if len(names) > 1 else None

    @property
    def stages(self) -> int:
        return len(self._stages)

    def tables(self, stage: int, key: str) -> list[Mapping[str, Any]]:
        """The tables called ``key`` of all layers and ends of a stage; those that have it."""
        chosen, device = self._stages[stage], self._devices[stage]
        parts = [device["options"][option] for option in chosen["options"]]
        ends = ((end, chosen[f"{end}_option"]) for end in ("embedding", "head"))
        parts += [device[end][option] for end, option in ends if option is not None]
        return [part[key] for part in parts if key in part]

    def overhead_ms(self, stage: int, phase: str) -> float:
        return float(self._devices[stage].get("overhead_ms", {}).get(phase, 0.0))

    def link_ms(self, link: int, tokens: float) -> float:
        return _message_ms(self._links[link], tokens * self._problem["activation_bytes_per_token"])

    def back_ms(self, rows: float) -> float:
        return 0.0 if self._back is None else _message_ms(self._back, rows * self._problem["token_bytes"])


def _message_ms(link: Mapping[str, float], payload_bytes: float) -> float:
    return link["alpha_ms"] + payload_bytes / link["bytes_per_ms"]


@dataclass(frozen=True)
class _Grid:
    """Milliseconds at ``sizes`` × ``lengths``; with one length alone, 0 or in proportion to it (``proportional``)."""

    sizes: Sequence[int]
    lengths: Sequence[int]
    ms: Sequence[Sequence[float]]
    proportional: bool

    def at(self, rows: float, length: int) -> float:
        last = self.sizes[-1]
        if rows >= last:
            return self._along(-1, length) * rows / last
        above = bisect_right(self.sizes, rows)
        if above == 0:
            return self._along(0, length)
        low, high = self.sizes[above - 1], self.sizes[above]
        share = (rows - low) / (high - low)
        below_ms = self._along(above - 1, length)
        return below_ms if share == 0 else (1 - share) * below_ms + share * self._along(above, length)

    def _along(self, size: int, length: int) -> float:
        row, lengths = self.ms[size], self.lengths
        if len(lengths) == 1:
            return row[0] * length / lengths[0] if self.proportional else row[0]
        above = min(max(bisect_right(lengths, length), 1), len(lengths) - 1)
        low, high = lengths[above - 1], lengths[above]
        share = (length - low) / (high - low)
        return max(0.0, (1 - share) * row[above - 1] + share * row[above])


def _grid(problem: Mapping[str, Any], parts: _Parts, stage: int, phase: str) -> _Grid:
    """The sum over the parts of a stage."""
    tables = parts.tables(stage, f"{phase}_ms")
    by_length = parts.tables(stage, f"{phase}_by_length_ms")
    sizes = sorted(int(size) for size in tables[0] if all(size in table for table in tables))
    if "lengths" in problem and len(by_length) == len(tables):
        ms = [[sum(values) for values in zip(*(table[str(size)] for table in by_length), strict=True)] for size in sizes]
        return _Grid(sizes, problem["lengths"][phase], ms, proportional=False)
    lengths = [problem["workload"]["prompt_tokens"]]
    return _Grid(sizes, lengths, [[sum(table[str(size)] for table in tables)] for size in sizes], proportional=phase == "prefill")
