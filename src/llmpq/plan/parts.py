"""What a stage may hold and how long it takes: the configurations of each class of devices as first, middle, last or only stage.

Everything of a stage but its neighbours is in its row: layers, embedding or head with their option, overhead, a blocking send.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llmpq.plan.candidate import Counts, Floats, kept_head_bytes, two
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.problem import PHASES, Device, Problem
from llmpq.plan.problem import Part as Tables
from llmpq.plan.routes import Routes
from llmpq.plan.stage_configs import StageConfigs, preferences, run_omega, stage_configs, wanted_bytes

FIRST, MIDDLE, LAST, LONE = range(4)
# Least and most layers that a stage may have, given those of the model: none is empty.
SIZES: dict[int, Callable[[int], tuple[int, int]]] = {
    FIRST: lambda layers: (1, layers - 1),
    MIDDLE: lambda layers: (1, layers - 2),
    LAST: lambda layers: (1, layers - 1),
    LONE: lambda layers: (layers, layers),
}
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """Rows [E], by ``size`` ascending: times in ms of a stage's largest micro-batch and of the rest of them in each phase.

    ``config`` are rows of the class's configurations, ``omega`` those of its table of damage, ``ends`` the end options' names, and
    ``end_omega`` their sensitivity.
    """

    of: int
    config: Counts
    omega: Counts
    size: Counts
    prefill_largest: Floats
    prefill_rest: Floats
    decode_largest: Floats
    decode_rest: Floats
    end: Counts
    ends: tuple[tuple[str, ...], ...]
    end_omega: Floats

    @property
    def busy(self) -> Floats:
        return self.decode_largest + self.decode_rest

    def kept(self, keep: Mask) -> "Part":
        if keep.all():
            return self
        rows = ("config", "omega", "size", "prefill_largest", "prefill_rest", "decode_largest", "decode_rest", "end", "end_omega")
        return replace(self, **{name: getattr(self, name)[keep] for name in rows})


@dataclass(frozen=True)
class Hop:
    """Times in ms of the link from one stage to the next, (largest, rest) in each phase; ``own`` where sends overlap: a pace of its own."""

    prefill: tuple[float, float]
    decode: tuple[float, float]
    own: bool

    @property
    def busy(self) -> float:
        return sum(self.decode)


# Parts by (role, class, class of the next stage); the next is -1 where it makes no difference (overlapped sends, nothing follows).
Parts = dict[tuple[int, int, int], Part]


class PartMaker:
    """Makes the parts of one problem; ``usable`` is False where a device has too many configurations to list."""

    def __init__(self, problem: Problem, routes: Routes) -> None:
        self.problem, self.routes = problem, routes
        self.omega = np.array([problem.omega[option] for option in problem.options]).T
        self.device = [problem.devices[devices[0]] for devices in routes.devices]
        self.available = [np.array([option in device.options for option in problem.options]) for device in self.device]
        self.bytes = [
            np.array([device.options[o].resident_bytes + problem.kv_bytes[o] if o in device.options else 0 for o in problem.options])
            for device in self.device
        ]
        self.configs: list[StageConfigs] = []
        self.damage: list[Floats] = []
        self.wanted: dict[tuple[int, tuple[tuple[int, int], ...]], Floats] = {}
        self.usable = (problem.layers + 1) ** len(problem.options) < 2**62 and self._list()

    def _list(self) -> bool:
        for c, device in enumerate(self.device):
            room = device.memory_bytes - min(self._workspace(c, batches) for batches in self.problem.micro_batches)
            found = stage_configs(self.available[c], self.bytes[c], room, self.problem.layers)
            if found is None:
                return False
            self.configs.append(found)
        return True

    def _workspace(self, c: int, batches: MicroBatches) -> int:
        table = self.device[c].workspace_bytes
        return max(table[phase][size] for phase in PHASES for size in set(batches.sizes(phase)))

    def all(self) -> dict[MicroBatches, Parts]:
        """The parts of every choice of micro-batches; fills in ``damage``: the tables of Σ omega, [rows, L + 1], of each class."""
        found = {batches: self._parts(batches) for batches in self.problem.micro_batches}
        for c, configs in enumerate(self.configs):
            own = [part for parts in found.values() for part in parts.values() if part.of == c]
            used = np.zeros(len(configs.size), dtype=bool)
            for part in own:
                used[part.config] = True
            place = np.cumsum(used) - 1
            self.damage.append(run_omega(configs, self.omega, np.flatnonzero(used)))
            for parts in found.values():
                for key, part in parts.items():
                    if part.of == c:
                        parts[key] = replace(part, omega=place[part.config])
        return found

    def _parts(self, batches: MicroBatches) -> Parts:
        found: Parts = {}
        for c, device in enumerate(self.device):
            followers = [-1] if self.problem.overlapped_sends else [m for m in range(self.routes.classes) if self.routes.pair(c, m)]
            heads, embeddings = list(device.head), list(device.embedding)
            for m in followers:
                found[FIRST, c, m] = self._part(c, batches, [(name,) for name in embeddings], FIRST, m)
                if c in self.routes.between:
                    found[MIDDLE, c, m] = self._part(c, batches, [()], MIDDLE, m)
            found[LAST, c, -1] = self._part(c, batches, [(name,) for name in heads], LAST, -1)
            found[LONE, c, -1] = self._part(c, batches, [(a, b) for a in embeddings for b in heads], LONE, -1)
        return found

    def _part(self, c: int, batches: MicroBatches, ends: list[tuple[str, ...]], role: int, follower: int) -> Part:
        device, configs = self.device[c], self.configs[c]
        layer = {phase: self._layer_times(c, batches, phase) for phase in PHASES}
        preferred = preferences(self.available[c], [times for both in layer.values() for times in both], self.omega)
        least, most = SIZES[role](self.problem.layers)
        sizes = slice(configs.first[least], max(configs.first[most + 1], configs.first[least]))
        pieces = []
        for number, names in enumerate(ends):
            extra = self._of_ends(device, names, role)
            room = device.memory_bytes - self._workspace(c, batches) - self._end_bytes(device, names, role)
            if (c, preferred) not in self.wanted:
                self.wanted[c, preferred] = wanted_bytes(configs, self.bytes[c], preferred)
            fits = (configs.bytes[sizes] <= room) & (room < self.wanted[c, preferred][sizes])
            rows = sizes.start + np.flatnonzero(fits)
            counts, times = configs.counts[rows].astype(float), []
            for phase in PHASES:
                fixed = self._fixed(device, extra, batches, phase)
                if follower >= 0 and not self.problem.overlapped_sends:
                    fixed = fixed + np.array(self.send(c, follower, batches, phase))
                times += [counts @ own + more for own, more in zip(layer[phase], fixed, strict=True)]
            damage = float(sum(self.problem.end_omega[end][name] for end, name in self._named(names, role)))
            pieces.append((rows, configs.size[rows], *times, np.full(len(rows), number), np.full(len(rows), damage)))
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        order = np.argsort(columns[1], kind="stable")
        config, size, prefill, prefill_rest, decode, decode_rest, end, end_omega = (column[order] for column in columns)
        return Part(c, config, np.zeros_like(config), size, prefill, prefill_rest, decode, decode_rest, end, tuple(ends), end_omega)

    def _layer_times(self, c: int, batches: MicroBatches, phase: str) -> tuple[Floats, Floats]:
        offered, sizes = self.device[c].options, batches.sizes(phase)
        both = [two(offered[o].ms[phase], sizes) if o in offered else (0.0, 0.0) for o in self.problem.options]
        return np.array([largest for largest, _ in both]), np.array([rest for _, rest in both])

    def _named(self, names: tuple[str, ...], role: int) -> Iterable[tuple[str, str]]:
        ends = {FIRST: ("embedding",), MIDDLE: (), LAST: ("head",), LONE: ("embedding", "head")}[role]
        return zip(ends, names, strict=True)

    def _of_ends(self, device: Device, names: tuple[str, ...], role: int) -> list[Tables]:
        return [(device.embedding if end == "embedding" else device.head)[name] for end, name in self._named(names, role)]

    def _end_bytes(self, device: Device, names: tuple[str, ...], role: int) -> int:
        if role == LONE:
            return device.embedding[names[0]].resident_bytes + kept_head_bytes(self.problem, [device], (names[0], names[1]))
        return sum(part.resident_bytes for part in self._of_ends(device, names, role))

    def _fixed(self, device: Device, ends: list[Tables], batches: MicroBatches, phase: str) -> Floats:
        """(largest, rest) of what the stage does besides its layers, without sends."""
        sizes, overhead = batches.sizes(phase), device.overhead_ms[phase]
        fixed = np.array([overhead, overhead * (len(sizes) - 1)])
        return fixed + sum((np.array(two(part.ms[phase], sizes)) for part in ends), np.zeros(2))

    def send(self, a: int, b: int, batches: MicroBatches, phase: str) -> tuple[float, float]:
        """(largest, rest) in ms of the link between two devices of classes ``a`` and ``b``."""
        pair = self.routes.pair(a, b)
        assert pair is not None
        link = self.problem.links[pair]
        return two({size: link.ms(self.problem.payload_bytes(phase, size)) for size in batches.sizes(phase)}, batches.sizes(phase))

    def hops(self, batches: MicroBatches) -> dict[tuple[int, int], Hop]:
        """The link between each two classes that may be neighbours; nothing where sends block: they are in the stages' times."""
        found, classes = {}, range(self.routes.classes)
        for a in classes:
            for b in classes:
                if self.routes.pair(a, b) is not None:
                    own = self.problem.overlapped_sends
                    prefill, decode = (self.send(a, b, batches, phase) if own else (0.0, 0.0) for phase in PHASES)
                    found[a, b] = Hop(prefill, decode, own)
        return found

    def drain_share(self, batches: MicroBatches) -> float:
        """The least share of any part's decode round that comes after its largest micro-batch: D >= share · B in every plan."""
        sizes = batches.sizes("decode")
        if len(sizes) == 1:
            return 0.0
        ends = [part for device in self.problem.devices for part in [*device.embedding.values(), *device.head.values()]]
        layers = [part for device in self.problem.devices for part in device.options.values()]
        tables = [part.ms["decode"] for part in [*ends, *layers]]
        tables += [{size: link.ms(self.problem.payload_bytes("decode", size)) for size in sizes} for link in self.problem.links.values()]
        shares = [(len(sizes) - 1) / len(sizes)]
        for largest, rest in (two(table, sizes) for table in tables):
            shares += [rest / (rest + largest)] if rest + largest > 0 else []
        return min(shares)

    def return_ms(self, last: int, first: int, batches: MicroBatches) -> float:
        pair = self.routes.pair(last, first)
        link = 0.0 if pair is None else self.problem.links[pair].ms(batches.eta * self.problem.token_bytes)
        return link + self.problem.scheduler_ms
