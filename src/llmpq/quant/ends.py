"""Embedding and head at the options that are quantised: one file per (end, option) and a manifest, once for every model.

Every vocabulary row is rounded to nearest on a grid of its own. An embedding is looked up, not multiplied, so no input is there to weigh
its columns by; and for the head it is enough (docs/log.md has perplexities).
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from llmpq import artifacts
from llmpq.model.checkpoint import Checkpoint
from llmpq.progress import Progress
from llmpq.quant.bytes import ENDS, End, resident_end_bytes
from llmpq.quant.files import LayerTensors, layer_vectors, plain_layer, tensors_sha256, write_layer
from llmpq.quant.grid import Grid
from llmpq.quant.layer_index import layer_file_name
from llmpq.quant.options import WeightOption, options_of_end, weight_option
from llmpq.quant.quantise import stored_tensors
from llmpq.quant.resume import finished, model_name, resumable
from llmpq.quant.rtn import rtn


def rounded_end(tensors: Mapping[str, Tensor], end: End, option: WeightOption) -> LayerTensors:
    """The end at ``option`` from its canonical tensors (Checkpoint.end); info of a quantised one has ``relative_error``, |W − Ŵ|²/|W|²."""
    if not option.quantised:
        return plain_layer(tensors, [end], end, option.name)
    weight = tensors[f"{end}.weight"]
    quantised = rtn(weight, Grid.of(option))
    energy, error = (float(each.square().sum()) for each in (weight, weight - quantised.dequantised(option.group_size)))
    info = {"relative_error": error / energy if energy > 0 else 0.0}
    return LayerTensors(end, option.name, {end: stored_tensors(option, quantised)}, layer_vectors(tensors, [end]), info)


def quantise_ends(checkpoint_dir: str | Path, out_dir: str | Path, *, options: Sequence[str]) -> dict[str, Any]:
    """Write embedding and head at those of ``options`` that are quantised and that they may have, with manifest.json (``quantised_ends``).

    Options 16 and 32 need no file: they are read from the checkpoint. Finished files survive a killed run, as those of layers do. Returns
    the manifest.
    """
    started, checkpoint = time.perf_counter(), Checkpoint(checkpoint_dir)
    chosen = {end: [option for option in map(weight_option, options_of_end(end, options)) if option.quantised] for end in ENDS}
    progress, rows = Progress("quantise ends", sum(map(len, chosen.values()))), []
    with resumable(Path(out_dir), "quantised_ends") as partial:
        for end, wanted in chosen.items():
            tensors = checkpoint.end(end) if wanted else {}
            recipe = artifacts.digest({"code": _code(), "weights": tensors_sha256(tensors)})
            for option in wanted:
                rows.append(_row(partial, checkpoint, tensors, end, option, recipe))
                progress.step(f"({end}, option {option.name})")
        body = {
            "model": model_name(checkpoint_dir),
            "options": list(dict.fromkeys(options)),
            "rows": rows,
            "seconds": round(time.perf_counter() - started, 3),
        }
        inputs = [Path(checkpoint_dir) / "config.json"]
        return artifacts.write(partial / "manifest.json", "quantised_ends", body, source="computed", inputs=inputs)


def _row(
    partial: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], end: End, option: WeightOption, recipe: str
) -> dict[str, Any]:
    """Make one file, or take it over from an earlier run; its row of the manifest."""
    started, path = time.perf_counter(), partial / layer_file_name(end, option.name)
    made = finished(path, recipe, end, option.name)
    if made is None:
        made = rounded_end(tensors, end, option)
        made.info = {**made.info, "recipe": recipe}
        write_layer(path, made)
    return {
        "end": end,
        "option": option.name,
        "file": path.name,
        "sha256": made.content_sha256(),
        "stored_bytes": made.stored_bytes,
        "resident_bytes": resident_end_bytes(checkpoint.spec, end, option.name),
        "relative_error": made.info["relative_error"],
        "seconds": round(time.perf_counter() - started, 3),
    }


def _code() -> str:
    from llmpq.sources import code_digest

    return code_digest("llmpq.quant.ends")
