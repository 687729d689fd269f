"""The cases that windows are bounded for: any subset of the devices, all orders of some of them, one order."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmpq.plan.candidate import Candidate, Floats, build
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.orders import exchangeable_classes
from llmpq.plan.pace import Case, Stage
from llmpq.plan.problem import PHASES, Device, Part, Problem
from llmpq.plan.stage_configs import ConfigTimes, StageConfigs, config_times, stage_configs


@dataclass(frozen=True)
class Team:
    """Which devices work, how many of each class, and which classes are first and last: everything of an order but its middle."""

    members: tuple[int, ...]
    first: int
    last: int


class Cases:
    """Makes the cases of one problem; ``usable`` is False where a device has too many configurations to list."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.classes = exchangeable_classes(problem)
        self.devices = [[index for index, number in enumerate(self.classes) if number == c] for c in range(max(self.classes) + 1)]
        self.configs: list[StageConfigs] = []
        self.times: dict[tuple[int, MicroBatches], ConfigTimes] = {}
        self.roomy: dict[tuple[int, MicroBatches, int], ConfigTimes] = {}
        self.drain: dict[MicroBatches, float] = {}
        self.usable = self._list_configs()

    def _list_configs(self) -> bool:
        for devices in self.devices:
            index = devices[0]
            alone = build(self.problem, (index,), self.problem.micro_batches[-1])
            found = stage_configs(alone.available[0], alone.layer_bytes[0], self.problem.devices[index].memory_bytes, self.problem.layers)
            if found is None:
                return False
            self.configs.append(found)
        return True

    def _roomy(self, number: int, batches: MicroBatches, capacity: int) -> ConfigTimes:
        """Configurations of a device class that take at most ``capacity`` bytes."""
        key = (number, batches, capacity)
        if key not in self.roomy:
            configs = self.configs[number]
            kept = configs.kept(configs.bytes <= capacity)
            self.roomy[key] = config_times(kept, build(self.problem, (self.devices[number][0],), batches), 0)
        return self.roomy[key]

    def subset(self, batches: MicroBatches) -> Case:
        """Any devices in any order: every device may stay empty, nobody holds embedding or head, links cost nothing."""
        return self._case(tuple(self._idle(batches, [0] * len(self.devices))), batches)

    def ends(self) -> Iterator[tuple[int, int]]:
        """Pairs of classes of the first and the last stage, of which there are two; one device alone is a team of its own."""
        for first, last in itertools.product(range(len(self.devices)), repeat=2):
            if (first != last or len(self.devices[first]) >= 2) and self.problem.layers >= 2 and self._together(self._pair(first, last)):
                yield first, last

    def _pair(self, first: int, last: int) -> tuple[int, int]:
        return self.devices[first][0], self.devices[last][1 if first == last else 0]

    def _together(self, devices: tuple[int, ...]) -> bool:
        """Whether no two of the devices share a physical one."""
        return not any(self.problem.excludes(a, b) for a, b in itertools.combinations(devices, 2))

    def with_ends(self, first: int, last: int, batches: MicroBatches) -> Case:
        """Any devices in any order between a first and a last one that work, with embedding and head; links cost nothing."""
        candidate = build(self.problem, self._pair(first, last), batches)
        taken = [int(first == c) + int(last == c) for c in range(len(self.devices))]
        stages = (*self._stages(candidate, linked=False), *self._idle(batches, taken))
        return self._case(stages, batches, end_omega=float(candidate.end_omega.min()))

    def _idle(self, batches: MicroBatches, taken: list[int]) -> Iterator[Stage]:
        """Stages that may stay empty: all devices but ``taken`` of each class."""
        for number, devices in enumerate(self.devices):
            device = self.problem.devices[devices[0]]
            workspace = max(device.workspace_bytes[phase][size] for phase in PHASES for size in set(batches.sizes(phase)))
            times = self._roomy(number, batches, device.memory_bytes - workspace)
            overhead = {phase: device.overhead_ms[phase] * np.array([1, len(batches.sizes(phase)) - 1]) for phase in PHASES}
            prefill, decode = overhead["prefill"], overhead["decode"]
            stage = Stage(times, float(prefill[0]), float(prefill[1]), float(decode[0]), float(decode.sum()), may_be_empty=True)
            yield from [stage] * (len(devices) - taken[number])

    def _case(self, stages: tuple[Stage, ...], batches: MicroBatches, **links: float) -> Case:
        new = self.problem.new_tokens
        if batches not in self.drain:
            self.drain[batches] = self.drain_share(batches)
        names = ("prefill_links", "decode_links", "prefill_link_rest", "link_busy", "return_ms", "end_omega")
        known = {name: links.get(name, 0.0) for name in names}
        return Case(stages, self.problem.layers, float(max(new - 2, 0)), float(new >= 2), self.drain[batches], **known)

    def drain_share(self, batches: MicroBatches) -> float:
        """The least share of any part's decode round that comes after its largest micro-batch: D >= share · R in every plan."""
        sizes = list(batches.sizes("decode"))
        largest = max(sizes)
        sizes.remove(largest)
        if not sizes:
            return 0.0
        shares = [len(sizes) / (len(sizes) + 1)]
        for device in self.problem.devices:
            for part in [*device.options.values(), *device_ends(device)]:
                table = part.ms["decode"]
                rest = sum(table[size] for size in sizes)
                shares += [rest / (rest + table[largest])] if rest + table[largest] > 0 else []
        for link in self.problem.links.values():
            rest = sum(link.ms(self.problem.payload_bytes("decode", size)) for size in sizes)
            whole = rest + link.ms(self.problem.payload_bytes("decode", largest))
            shares += [rest / whole] if whole > 0 else []
        return min(shares)

    def lone_teams(self) -> Iterator[Team]:
        """One device alone, for each class."""
        for c in range(len(self.devices)):
            yield Team(tuple(int(c == other) for other in range(len(self.devices))), c, c)

    def teams(self, first: int, last: int) -> Iterator[Team]:
        """Every choice of two and more devices with these first and last classes, once for all orders of the middle."""
        least = [int(first == c) + int(last == c) for c in range(len(self.devices))]
        for numbers in itertools.product(*(range(low, len(devices) + 1) for low, devices in zip(least, self.devices, strict=True))):
            if sum(numbers) <= self.problem.layers and self._together(self.present(numbers)):
                yield Team(numbers, first, last)

    @functools.cache  # noqa: B019 - one number per problem
    def order_count(self) -> int:
        """How many distinct orders there are of all teams."""
        total = sum(1 for _ in self.lone_teams())
        for first, last in self.ends():
            total += sum(self.orders_of(team) for team in self.teams(first, last))
        return total

    def orders_of(self, team: Team) -> int:
        """How many distinct orders a team has."""
        if sum(team.members) == 1:
            return 1
        middle = [number - int(c == team.first) - int(c == team.last) for c, number in enumerate(team.members)]
        return math.factorial(sum(middle)) // math.prod(map(math.factorial, middle))

    def present(self, members: tuple[int, ...]) -> tuple[int, ...]:
        """The devices of a team, lowest numbers first within each class."""
        return tuple(device for c, number in enumerate(members) for device in self.devices[c][:number])

    def an_order(self, team: Team) -> tuple[int, ...]:
        return next(self.orders(team))

    def orders(self, team: Team) -> Iterator[tuple[int, ...]]:
        """The distinct orders of a team's devices; of exchangeable devices the lowest numbers come first."""
        left = Counter({c: number for c, number in enumerate(team.members) if number})
        if sum(team.members) == 1:
            yield (self.devices[team.first][0],)
            return
        left[team.first] -= 1
        left[team.last] -= 1

        def middle(chosen: list[int]) -> Iterator[list[int]]:
            if not any(left.values()):
                yield chosen
                return
            for c in sorted(left):
                if left[c] > 0:
                    left[c] -= 1
                    yield from middle([*chosen, c])
                    left[c] += 1

        for chosen in middle([]):
            taken: Counter[int] = Counter()
            order = []
            for c in [team.first, *chosen, team.last]:
                order.append(self.devices[c][taken[c]])
                taken[c] += 1
            yield tuple(order)

    def ordered(self, candidate: Candidate, end: int | None = None) -> Case:
        """The case of one candidate with one of its pairs of end options, or with the best of all of them: exact but for Σ omega."""
        first, later = candidate.times["prefill"], candidate.times["decode"]
        return self._case(
            self._stages(candidate, end=end),
            candidate.batches,
            prefill_links=float(first.link_largest.sum()),
            decode_links=float(later.link_largest.sum()),
            prefill_link_rest=float(first.link_rest.max(initial=0.0)),
            link_busy=float((later.link_largest + later.link_rest).max(initial=0.0)),
            return_ms=candidate.return_ms,
            end_omega=float(candidate.end_omega.min() if end is None else candidate.end_omega[end]),
        )

    def _stages(self, candidate: Candidate, *, end: int | None = None, linked: bool = True) -> tuple[Stage, ...]:
        """The candidate's stages with one pair of end options (or the best), with or without the blocking sends in their times."""
        prefill, prefill_rest = _fixed_ms(candidate, "prefill", end)
        decode, decode_rest = _fixed_ms(candidate, "decode", end)
        capacity = candidate.capacity if end is None else candidate.capacity - candidate.end_bytes[end]
        stages: list[Stage] = []
        known: dict[tuple, Stage] = {}
        for j, device in enumerate(candidate.order):
            times = self._roomy(self.classes[device], candidate.batches, int(capacity[j]))
            fixed = [prefill[j], prefill_rest[j], decode[j], decode[j] + decode_rest[j]]
            if not linked and not self.problem.overlapped_sends and j < candidate.stages - 1:
                sends = [self._send(candidate.order[j], candidate.order[j + 1], candidate.batches, phase) for phase in PHASES]
                (send, send_rest), (token, token_rest) = sends
                fixed = [value - off for value, off in zip(fixed, (send, send_rest, token, token + token_rest), strict=True)]
            key = (id(times), *fixed)
            stages.append(known.setdefault(key, Stage(times, float(fixed[0]), float(fixed[1]), float(fixed[2]), float(fixed[3]))))
        return tuple(stages)

    def _send(self, a: int, b: int, batches: MicroBatches, phase: str) -> tuple[float, float]:
        """(largest, rest) of a link's time in ms."""
        link = self.problem.links[a, b]
        times = [link.ms(self.problem.payload_bytes(phase, size)) for size in batches.sizes(phase)]
        return max(times), sum(times) - max(times)

    def team(self, team: Team, batches: MicroBatches) -> Case:
        """All orders of a team at once: exact for every stage, with the best link of its devices for everyone."""
        order = self.an_order(team)
        candidate = build(self.problem, order, batches)
        if len(order) == 1:
            return self.ordered(candidate)
        stages = self._stages(candidate, linked=False)
        if not self.problem.overlapped_sends:
            return self._case(stages, batches, end_omega=float(candidate.end_omega.min()))
        (prefill, prefill_rest), (decode, decode_rest) = (self._best_link(team, batches, phase) for phase in PHASES)
        hops = len(order) - 1
        return self._case(
            stages,
            batches,
            prefill_links=hops * prefill,
            decode_links=hops * decode,
            prefill_link_rest=prefill_rest,
            link_busy=decode + decode_rest,
            return_ms=self._least_return(team, batches),
            end_omega=float(candidate.end_omega.min()),
        )

    def _pairs(self, team: Team) -> list[tuple[int, int]]:
        return list(itertools.permutations(self.present(team.members), 2))

    def _best_link(self, team: Team, batches: MicroBatches, phase: str) -> tuple[float, float]:
        """(largest, rest) of the quickest link between two of the team's devices, each on its own."""
        times = [self._send(a, b, batches, phase) for a, b in self._pairs(team)]
        return min(time for time, _ in times), min(time for _, time in times)

    def _least_return(self, team: Team, batches: MicroBatches) -> float:
        payload = batches.eta * self.problem.token_bytes
        return min(self.problem.links[pair].ms(payload) for pair in self._pairs(team))


def _fixed_ms(candidate: Candidate, phase: str, end: int | None) -> tuple[Floats, Floats]:
    """(largest, rest) [N] of what the stages do besides their layers."""
    times = candidate.times[phase]
    if end is None:
        return times.fixed_largest, times.fixed_rest
    return times.fixed_largest + times.end_largest[end], times.fixed_rest + times.end_rest[end]


def device_ends(device: Device) -> list[Part]:
    """Embedding and head of a device under every option."""
    return [*device.embedding.values(), *device.head.values()]
