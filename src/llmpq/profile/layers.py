"""Time one decoder layer, the embedding and the head of a model on one device, per option and phase, on a grid of shapes.

Every point is one real call of a small StageModel (llmpq.profile.stack) on the device's cores. Repeats are interleaved: each round visits
all options and shapes once in a new random order, so a disturbance hits all alike, and weights and cache entries are as cold as in a
pipeline, where a layer's weights are pushed out by the rest of the model between two of its calls.

Times are the emulated device's: slow-down × processor time of the call, the law by which llmpq.emulation stretches a call in serving; the
sleep itself is left out here, except for the overhead of an empty call, which contains whatever the sleep costs beyond its due. The
overhead of a decode call further contains what a call costs after the caches have seen something else (llmpq.profile.grid.Point).
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmpq import artifacts
from llmpq.emulation import Emulator
from llmpq.errors import ConfigError
from llmpq.model.checkpoint import Checkpoint
from llmpq.profile import stack
from llmpq.profile.grid import DEAR_SECONDS, Grid, Point
from llmpq.profile.machine import QuietCheck, identity, pinned, quietest_cores
from llmpq.profile.statistics import summary_ms
from llmpq.profile.workspace import peak_temporary_bytes
from llmpq.progress import time_left
from llmpq.quant.bytes import ENDS
from llmpq.quant.options import options_of_end

OPTIONS = ("16", "bf16", "8", "w8a8-outlier", "w8a8", "4", "3")
LEAST_PART = 0.05
PARTS = ("layer", "embedding", "head", "overhead")


def profile_device(
    checkpoint_dir: str | Path,
    model_name: str,
    device: Mapping[str, Any],
    settings: Mapping[str, Any],
    out: str | Path,
    *,
    options: Sequence[str] = OPTIONS,
    end_options: Sequence[str] = ("16",),
    cores: Sequence[int] | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Profile ``device`` (the configuration group) on this machine and write a ``profile`` artifact to ``out``; returns the document.

    ``settings`` are the ``profile`` group: micro_batches, prompt_tokens, contexts, repeats, warmup. ``end_options`` are timed at the end
    that may have them. ``cores`` are the core numbers to run
    on (default: the least busy ones, as many as the device has). Milliseconds per row: one layer (part ``layer``), one call's embedding,
    head with greedy choice, or ``overhead``. Raises ConfigError for a device that is not here and for an empty grid.
    """
    check_settings(device, settings)
    started = time.perf_counter()
    count = int(device.get("cores", 1))
    emulator = Emulator(float(device.get("slowdown", 1.0)), tuple(cores) if cores else quietest_cores(count))
    with pinned(emulator):
        quiet = QuietCheck()
        grid = Grid(Checkpoint(checkpoint_dir), settings)
        progress(f"profile {device['name']}: packing {len(options)} options")
        points = [point for option in stack.known_options(options) for point in grid.layer_points(option)]
        points += [point for end in ENDS for option in options_of_end(end, end_options) for point in grid.end_points(end, option)]
        points += grid.overhead_points()
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
    config = {"device": dict(device), "profile": dict(settings), "options": list(options), "end_options": list(end_options)}
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


def time_points(
    points: Sequence[Point], emulator: Emulator, settings: Mapping[str, Any], progress: Callable[[str], None], name: str
) -> None:
    """Warm up every point (measuring its workspace), then time all of them in interleaved rounds."""
    base = Emulator(1.0, emulator.cores)  # all but the overhead is timed without sleeping
    with torch.inference_mode():
        for point in points:
            start = time.perf_counter()
            # With several layers the peak holds the input of a later one; with one only it has to be added.
            point.workspace_bytes = peak_temporary_bytes(point.call) + (point.input_bytes if point.layers == 1 else 0)
            point.estimate_s = time.perf_counter() - start
            if point.estimate_s < DEAR_SECONDS:  # a dear call has warmed up by now; of a cheap one that was mostly the recording
                for _ in range(int(settings["warmup"]) + 1):
                    with base.call() as timed:
                        point.call()
                point.estimate_s = timed.cpu_s * (1 if point.prelude is None else 1 + (point.prelude_layers or point.layers) / point.layers)
    configured = int(settings["repeats"])
    wanted = {id(point): point.repeats(configured) for point in points}
    total = sum(wanted[id(point)] * point.estimate_s for point in points)
    progress(f"profile {name}: {len(points)} points, about {total:.0f} s")
    order, spent, began = random.Random(0), 0.0, time.perf_counter()
    announced = began
    with torch.inference_mode():
        for turn in range(max(wanted.values())):
            round_points = [point for point in points if turn < wanted[id(point)]]
            order.shuffle(round_points)
            for point in round_points:
                _sample(point, emulator, base)
                spent += point.estimate_s
                now = time.perf_counter()
                if now - announced > 5:
                    announced = now
                    progress(f"profile {name}: {100 * spent / total:.0f} %, {now - began:.0f} s, {time_left(now - began, spent, total)}")


def _sample(point: Point, emulator: Emulator, base: Emulator) -> None:
    """Time one point once, in seconds of the emulated device; an empty call really sleeps and counts as long as it really took."""
    if point.prelude is not None:
        with base.call() as call:
            point.prelude()
        point.prelude_samples.append(emulator.slowdown * call.cpu_s)
    with (emulator if point.part == "overhead" else base).call() as call:
        point.call()
    stretched = emulator.slowdown * call.cpu_s
    if point.part == "overhead":
        point.bare_samples.append(stretched)
        stretched = max(call.elapsed_s, stretched)
    point.samples.append(stretched)


def rows_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Profile rows: samples less the empty call at the same shape, divided by the layers; the overhead also has what cold calls cost."""
    empty, cold = empty_calls(points), cold_calls(points)
    rows = []
    for point in sorted(points, key=lambda point: PARTS.index(point.part)):
        shape = (point.phase, point.micro_batch, point.length)
        if point.part == "overhead":
            seconds = [sample + cold.get(shape, 0.0) for sample in point.samples]
        else:
            # An end can be as cheap as the empty call itself, of which a small part is then as good a guess as any.
            seconds = [max(sample - empty[shape], LEAST_PART * sample) / point.layers for sample in point.samples]
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


def empty_calls(points: Sequence[Point]) -> dict[tuple[str, int, int], float]:
    """Median seconds of an empty call by (phase, micro_batch, length), without what its sleep cost beyond its due."""
    return {
        (point.phase, point.micro_batch, point.length): float(np.median(point.bare_samples)) for point in points if point.part == "overhead"
    }


def cold_calls(points: Sequence[Point]) -> dict[tuple[str, int, int], float]:
    """Seconds by shape that a prelude took beyond its layers and an empty call: the median over options, at least 0."""
    empty = empty_calls(points)
    found: dict[tuple[str, int, int], list[float]] = {}
    for point in points:
        if point.prelude_layers:
            shape = (point.phase, point.micro_batch, point.length)
            layer = (float(np.median(point.samples)) - empty[shape]) / point.layers
            beyond = float(np.median(point.prelude_samples)) - empty[shape] - point.prelude_layers * layer
            found.setdefault(shape, []).append(max(beyond, 0.0))
    return {shape: float(np.median(values)) for shape, values in found.items()}
