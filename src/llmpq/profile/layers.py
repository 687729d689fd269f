"""Time one decoder layer, the embedding and the head of a model on one device, per option and phase, on a grid of shapes.

Every point is one real call of a small StageModel (llmpq.profile.stack) on the device's cores. Repeats are interleaved: each round visits
all options and shapes once in a new random order, so a disturbance hits all alike, and weights and cache entries are as cold as in a
pipeline, where a layer's weights are pushed out by the rest of the model between two of its calls.

Times are the emulated device's: slow-down × processor time of the call, the law by which llmpq.emulation stretches a call in serving; the
sleep itself is left out here, except for the overhead of an empty call, which contains whatever the sleep costs beyond its due.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmpq import artifacts
from llmpq.emulation import Emulator
from llmpq.errors import ConfigError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.greedy import greedy
from llmpq.model.stage import StageModel
from llmpq.profile import stack
from llmpq.profile.statistics import QuietCheck, quietest_cores, summary_ms
from llmpq.profile.workspace import peak_temporary_bytes

OPTIONS = ("16", "8", "w8a8-outlier", "w8a8", "4", "3")
STACK_LAYERS = 8  # distinct layers in the stack; a decode call runs them all
PREFILL_TOKENS = 512  # a prefill call runs as many layers as make at least this many tokens × layers: long prompts need no stack
POINT_SECONDS = 0.03  # per configured repeat: cheap points are repeated more often than that, dear ones less
MAX_REPEATS_FACTOR = 4
MIN_REPEATS = 3
DEAR_SECONDS = 0.1
NO_OPTION = "-"  # the overhead rows belong to no weight option
PARTS = ("layer", "embedding", "head", "overhead")


@dataclass
class Point:
    """One shape of one part at one option, the call that runs it, and its samples in seconds of the emulated device."""

    part: str
    phase: str
    option: str
    micro_batch: int
    length: int
    layers: int
    call: Callable[[], Any]
    input_bytes: int
    samples: list[float] = field(default_factory=list)
    bare_samples: list[float] = field(default_factory=list)  # overhead only: without what the sleep cost beyond its due
    estimate_s: float = 0.0
    workspace_bytes: int = 0

    def repeats(self, configured: int) -> int:
        """How often to time this point, from what its first calls took."""
        wanted = round(POINT_SECONDS * configured / max(self.estimate_s, 1e-6))
        return min(max(wanted, min(MIN_REPEATS, configured)), MAX_REPEATS_FACTOR * configured)


def profile_device(
    checkpoint_dir: str | Path,
    model_name: str,
    device: Mapping[str, Any],
    settings: Mapping[str, Any],
    out: str | Path,
    *,
    options: Sequence[str] = OPTIONS,
    end_option: str = "16",
    cores: Sequence[int] | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Profile ``device`` (the configuration group) on this machine and write a ``profile`` artifact to ``out``; returns the document.

    ``settings`` are the ``profile`` group: micro_batches, prompt_tokens, contexts, repeats, warmup. ``cores`` are the core numbers to run
    on (default: the least busy ones, as many as the device has). Milliseconds per row: one layer (part ``layer``), one call's embedding,
    head with greedy choice, or ``overhead``. Raises ConfigError for a device that is not here and for an empty grid.
    """
    check_settings(device, settings)
    started = time.perf_counter()
    count = int(device.get("cores", 1))
    emulator = Emulator(float(device.get("slowdown", 1.0)), tuple(cores) if cores else quietest_cores(count))
    with pinned(emulator):
        quiet = QuietCheck()
        grid = Grid(Checkpoint(checkpoint_dir), settings, end_option)
        progress(f"profile {device['name']}: packing {len(options)} options")
        points = [point for option in stack.known_options(options) for point in grid.layer_points(option)]
        points += [*grid.end_points("embedding"), *grid.end_points("head"), *grid.overhead_points()]
        time_points(points, emulator, settings, progress, str(device["name"]))
    rows = rows_of(points)
    checked = quiet.finish()
    if not checked["quiet"]:
        progress(
            f"profile {device['name']}: warning: other processes used {checked['busy_cores_elsewhere']:.2f} cores meanwhile; "
            "timings are less reliable, profile again on a quiet machine"
        )
    body = {
        "model": model_name,
        "device": device["name"],
        "kind": device["kind"],
        "slowdown": emulator.slowdown,
        "threads": emulator.threads,
        **({"profile": settings["name"]} if "name" in settings else {}),
        "seconds": round(time.perf_counter() - started, 3),
        "quiet": checked,
        "device_identity": identity(emulator.cores),
        "rows": rows,
    }
    inputs = [Path(checkpoint_dir) / "config.json"]
    config = {"device": dict(device), "profile": dict(settings), "options": list(options), "end_option": end_option}
    return artifacts.write(out, "profile", body, source=str(device["source"]), inputs=inputs, config=config)


def check_settings(device: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a device that cannot be timed here and for a grid without points."""
    if device["kind"] != "cpu":
        raise ConfigError(f"device {device['name']} is of kind '{device['kind']}'; only cpu devices can be profiled on this machine")
    for key in ("micro_batches", "prompt_tokens", "contexts"):
        values = settings.get(key)
        if not values or min(values) < 1:
            raise ConfigError(f"profile.{key} is {values}; it needs at least one size, each at least 1")
    if int(settings["repeats"]) < 1 or int(settings["warmup"]) < 0:
        raise ConfigError("profile: repeats must be at least 1 and warmup at least 0")


class pinned:  # noqa: N801 (reads as a phrase: with pinned(emulator))
    """Pin this process to the emulated device's cores, and restore affinity and thread count afterwards."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def __enter__(self) -> None:
        import os

        self._affinity, self._threads = os.sched_getaffinity(0), torch.get_num_threads()
        self._emulator.pin()

    def __exit__(self, *_: object) -> None:
        import os

        for thread in os.listdir("/proc/self/task"):
            try:
                os.sched_setaffinity(int(thread), self._affinity)
            except ProcessLookupError:
                continue
        torch.set_num_threads(self._threads)


class Grid:
    """Builds the points of a profile: stages, caches and inputs for every shape."""

    def __init__(self, checkpoint: Checkpoint, settings: Mapping[str, Any], end_option: str) -> None:
        self.checkpoint, self.spec, self.end_option = checkpoint, checkpoint.spec, end_option
        self.sizes = sorted({int(size) for size in settings["micro_batches"]})
        self.prompts = sorted({int(size) for size in settings["prompt_tokens"]})
        self.contexts = sorted({int(size) for size in settings["contexts"]})
        self.capacity = max(self.prompts[-1], self.contexts[-1])
        self.layers = min(STACK_LAYERS, self.spec.layers)
        self.cache = stack.first_layers(stack.empty_stage(checkpoint), 0).new_cache(self.sizes[-1], self.capacity)
        self.layer_cache: Any = None
        random_state = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(self.sizes[-1], self.prompts[-1], self.spec.hidden, generator=random_state)
        self.ids = torch.randint(self.spec.vocab, (self.sizes[-1], self.prompts[-1]), generator=random_state)

    def layer_points(self, option: str) -> Iterator[Point]:
        """All shapes of a decoder layer at ``option``."""
        full = stack.layer_stack(self.checkpoint, option, self.layers)
        self.layer_cache = self.layer_cache or full.new_cache(self.sizes[-1], self.capacity)
        for size in self.sizes:
            for prompt in self.prompts:
                layers = min(math.ceil(PREFILL_TOKENS / (size * prompt)), self.layers)
                stage = stack.first_layers(full, layers)
                cache = stage.new_cache(size, prompt)
                yield self._prefill("layer", option, stage, layers, size, prompt, self.hidden[:size, :prompt], cache)
            for context in self.contexts:
                yield self._decode("layer", option, full, self.layers, size, context, self.hidden[:size, 0], self.layer_cache)

    def end_points(self, end: str) -> Iterator[Point]:
        """All shapes of the embedding or the head, which do not look at a context."""
        stage = stack.end_stage(self.checkpoint.directory, end, self.end_option)
        inputs = self.ids if end == "embedding" else self.hidden
        for size in self.sizes:
            for prompt in self.prompts:
                yield self._prefill(end, self.end_option, stage, 1, size, prompt, inputs[:size, :prompt], self.cache)
            yield self._decode(end, self.end_option, stage, 1, size, self.contexts[-1], inputs[:size, 0], self.cache)

    def overhead_points(self) -> Iterator[Point]:
        """The empty call at the grid's shapes."""
        stage = stack.empty_stage(self.checkpoint)
        for size in self.sizes:
            for prompt in self.prompts:
                yield self._prefill("overhead", NO_OPTION, stage, 1, size, prompt, self.hidden[:size, :prompt], self.cache)
            for context in self.contexts:
                yield self._decode("overhead", NO_OPTION, stage, 1, size, context, self.hidden[:size, 0], self.cache)

    def _prefill(
        self, part: str, option: str, stage: StageModel, layers: int, size: int, prompt: int, inputs: torch.Tensor, cache: Any
    ) -> Point:
        inputs, lengths, rows = inputs.contiguous(), torch.full((size,), prompt), slice(0, size)

        def call() -> Any:
            result = stage.prefill(inputs, cache, rows, lengths)
            return greedy(result) if part == "head" else result

        return Point(part, "prefill", option, size, prompt, layers, call, inputs.nbytes)

    def _decode(
        self, part: str, option: str, stage: StageModel, layers: int, size: int, context: int, inputs: torch.Tensor, cache: Any
    ) -> Point:
        inputs, positions, rows = inputs.contiguous(), torch.full((size,), context - 1), slice(0, size)

        def call() -> Any:
            result = stage.decode(inputs, cache, rows, positions)
            return greedy(result) if part == "head" else result

        return Point(part, "decode", option, size, context, layers, call, inputs.nbytes)


def time_points(
    points: Sequence[Point], emulator: Emulator, settings: Mapping[str, Any], progress: Callable[[str], None], name: str
) -> None:
    """Warm up every point (measuring its workspace), then time all of them in interleaved rounds."""
    base = Emulator(1.0, emulator.cores)  # all but the overhead is timed without sleeping
    with torch.inference_mode():
        for point in points:
            start = time.perf_counter()
            point.workspace_bytes = point.input_bytes + peak_temporary_bytes(point.call)
            point.estimate_s = time.perf_counter() - start
            if point.estimate_s < DEAR_SECONDS:  # a dear call has warmed up by now; of a cheap one that was mostly the recording
                for _ in range(int(settings["warmup"])):
                    point.call()
                point.estimate_s = _sample(point, base)
                point.bare_samples.clear()
    configured = int(settings["repeats"])
    wanted = {id(point): point.repeats(configured) for point in points}
    total = sum(wanted[id(point)] * point.estimate_s for point in points)
    progress(f"profile {name}: {len(points)} points, about {total:.0f} s")
    order, spent, announced = random.Random(0), 0.0, time.perf_counter()
    with torch.inference_mode():
        for turn in range(max(wanted.values())):
            round_points = [point for point in points if turn < wanted[id(point)]]
            order.shuffle(round_points)
            for point in round_points:
                point.samples.append(_sample(point, emulator if point.part == "overhead" else base, emulator.slowdown))
                spent += point.estimate_s
                if time.perf_counter() - announced > 5:
                    announced = time.perf_counter()
                    progress(f"profile {name}: {100 * spent / total:.0f} %, {total - spent:.0f} s left")


def _sample(point: Point, emulator: Emulator, slowdown: float = 1.0) -> float:
    """One timed call, in seconds of the emulated device; an overhead call really sleeps and counts as long as it really took."""
    with emulator.call() as call:
        point.call()
    stretched = slowdown * call.cpu_s
    if point.part != "overhead":
        return stretched
    point.bare_samples.append(stretched)
    return max(call.elapsed_s, stretched)


def rows_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Profile rows: samples less the overhead of an empty call at the same shape, divided by the layers of the stack."""
    empty = {
        (point.phase, point.micro_batch, point.length): float(np.median(point.bare_samples)) for point in points if point.part == "overhead"
    }
    rows = []
    for point in sorted(points, key=lambda point: PARTS.index(point.part)):
        overhead = 0.0 if point.part == "overhead" else empty[point.phase, point.micro_batch, point.length]
        # An end can be as cheap as the empty call itself: a thousandth of the sample is then as good a guess as any, and never negative.
        seconds = [max(sample - overhead, 1e-3 * sample) / point.layers for sample in point.samples]
        rows.append(
            {
                "part": point.part,
                "phase": point.phase,
                "option": point.option,
                "micro_batch": point.micro_batch,
                "tokens": point.length if point.phase == "prefill" else 1,
                "context": point.length,
                **summary_ms(seconds),
                "workspace_bytes": point.workspace_bytes,
            }
        )
    return rows


def identity(cores: Sequence[int]) -> dict[str, Any]:
    """What this machine's processor is, for the provenance of a profile."""
    found: dict[str, Any] = {
        "cores": list(cores),
        "torch_threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "cpu MHz", "cache size") and key.strip() not in found:
            found[key.strip()] = value.strip()
    return found
