"""The indicator artifact: omega of every (layer, option) and every (end, option), whatever the method, in one unit.

Raw damages are divided by their sum over all layers at the reference option, so uniform ``4`` sums to 1: a planner's theta is then the
milliseconds one would pay to avoid the damage of uniform 4 bit, and a budget of 1 means "no worse than uniform 4 bit".
"""

import math
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ArtifactError, ConfigError
from llmpq.indicator.base import WHOLE_LAYER, QuantisedLayer, Source
from llmpq.indicator.ends import end_damages
from llmpq.indicator.methods import SEE_CACHES, method
from llmpq.model.checkpoint import Checkpoint
from llmpq.progress import Progress
from llmpq.quant.calibration import Calibration
from llmpq.quant.files import read_layer
from llmpq.quant.options import DEFAULT_KV, LayerOption, layer_option
from llmpq.quant.quantise import read_manifests

REFERENCE_OPTION = "4"

RawTable = dict[tuple[int, str], dict[str, float]]
"""(layer, option) → operator (or WHOLE_LAYER) → damage in the method's own unit."""


def write_indicator(
    out_file: str | Path,
    *,
    checkpoint_dir: str | Path,
    calibration_file: str | Path,
    quantised_dirs: Sequence[str | Path],
    model: str,
    quantizer: str,
    indicator: Mapping[str, Any],
    options: Sequence[str],
    ends_dir: str | Path | None = None,
    end_options: Sequence[str] = ("16",),
) -> dict[str, Any]:
    """Score ``options`` of every layer and ``end_options`` of both ends and write the ``indicator`` artifact; returns the document.

    ``options``: "4", or "4/kv8" with an 8-bit cache. ``quantised_dirs``: the groups (each with manifest.json) that together hold every
    layer; ``ends_dir``: the quantised ends, where there are any; ``indicator``: ``name``, ``method`` and the method's settings. Options of
    16 bits and more, in their cache too, have omega 0 by definition. Raises ConfigError for an unknown method, options without the
    reference or caches that the method cannot judge, ArtifactError where a layer or end was not quantised.
    """
    started = time.perf_counter()
    chosen = [layer_option(name) for name in dict.fromkeys(options)]
    raw = raw_damages(checkpoint_dir, calibration_file, quantised_dirs, chosen, indicator)
    rows, unit = normalise(raw)
    layers_done = time.perf_counter()
    folders = [*quantised_dirs, *([] if ends_dir is None else [ends_dir])]
    source = Source(Checkpoint(checkpoint_dir), Calibration(calibration_file), indicator)
    ends, divergence = end_damages(source, folders, end_options, REFERENCE_OPTION)
    body = {
        "model": model,
        "quantizer": quantizer,
        "indicator": str(indicator["name"]),
        "reference_option": REFERENCE_OPTION,
        "unit": unit,
        "rows": rows,
        "ends": ends,
        "end_unit": divergence,
        "seconds": round(layers_done - started, 3),
        "end_seconds": round(time.perf_counter() - layers_done, 3),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    inputs = [calibration_file, *(Path(directory) / "manifest.json" for directory in folders)]
    settings = {**indicator, "options": list(options), "end_options": list(end_options)}
    return artifacts.write(out_file, "indicator", body, source="measured", inputs=inputs, config=settings)


def raw_damages(
    checkpoint_dir: str | Path,
    calibration_file: str | Path,
    quantised_dirs: Sequence[str | Path],
    options: Sequence[LayerOption],
    settings: Mapping[str, Any],
) -> RawTable:
    """Damage of every layer, option and operator in the method's own unit; the options of one layer in memory at a time."""
    make = method(settings.get("method"))
    if REFERENCE_OPTION not in [option.name for option in options]:
        raise ConfigError(
            f"quantizer.options must hold '{REFERENCE_OPTION}': the indicator's unit is the damage of uniform {REFERENCE_OPTION}"
        )
    cached = [option for option in options if option.rounds_cache]
    if cached and settings["method"] not in SEE_CACHES:
        raise ConfigError(
            f"model.kv_options: indicator.method '{settings['method']}' cannot judge a cache of {cached[0].kv} bits; "
            f'choose one of {", ".join(SEE_CACHES)}, or kv_options ["{DEFAULT_KV}"]'
        )
    checkpoint, calibration = Checkpoint(checkpoint_dir), Calibration(calibration_file)
    spec = checkpoint.spec
    calibration.check(spec.operators(), spec.layers)
    found, progress = read_manifests(quantised_dirs), Progress(f"indicator {settings['method']}", spec.layers)
    indicator, raw = make(Source(checkpoint, calibration, settings)), {}
    for index in range(spec.layers):
        rows = {option.weights: _row(found, index, option.weights.name) for option in options if _damages(option)}
        tensors = {weights: read_layer(row["path"], index, weights.name) for weights, row in rows.items()}
        stored = {option.weights: tensors[option.weights] for option in options if option.weights.quantised}
        losses = {weights: {name: part["loss"] for name, part in rows[weights]["operators"].items()} for weights in stored}
        parts = indicator.damages(QuantisedLayer(index, stored, losses, {option: tensors[option.weights] for option in cached}))
        for option in options:
            raw[index, option.name] = parts[option.name] if _damages(option) else {WHOLE_LAYER: 0.0}
        progress.step("layers")
    return raw


def _damages(option: LayerOption) -> bool:
    """Whether anything is rounded beyond 16 bits: options that do not are harmless by definition."""
    return option.weights.quantised or option.rounds_cache


def normalise(raw: RawTable) -> tuple[list[dict[str, Any]], float]:
    """(rows of the artifact sorted by layer, the unit: raw damage of the whole model at the reference option)."""
    unit = math.fsum(sum(parts.values()) for (_, option), parts in raw.items() if option == REFERENCE_OPTION)
    if not unit > 0 or not math.isfinite(unit):
        raise ArtifactError(f"indicator: uniform '{REFERENCE_OPTION}' does a damage of {unit}, which cannot serve as unit; calibrate again")
    rows = []
    for (layer, option), parts in sorted(raw.items(), key=lambda item: item[0][0]):
        scaled = {name: value / unit for name, value in parts.items()}
        operators = {} if WHOLE_LAYER in scaled else {"operators": scaled}
        rows.append({"layer": layer, "option": option, "omega": math.fsum(scaled.values()), **operators})
    return rows, unit


def _row(found: Mapping[tuple[int, str], dict[str, Any]], layer: int, option: str) -> dict[str, Any]:
    try:
        return found[layer, option]
    except KeyError:
        raise ArtifactError(f"layer {layer} at option '{option}' is in none of the groups' manifests; quantise it first") from None
