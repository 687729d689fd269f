"""Quantise a group of layers at all options: one file per (layer, option) and a manifest, resuming where a killed run stopped."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmpq import artifacts
from llmpq.errors import ArtifactError, ConfigError, LlmpqError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.spec import ModelSpec
from llmpq.progress import Progress
from llmpq.quant.auto_gptq import AutoGptq
from llmpq.quant.bytes import resident_layer_bytes
from llmpq.quant.calibration import Calibration, InputStatistics
from llmpq.quant.files import LayerTensors, layer_vectors, plain_layer, read_layer, write_layer
from llmpq.quant.gptq import HessianFactor, Quantised, factorise, gptq, output_loss
from llmpq.quant.grid import Grid
from llmpq.quant.layer_index import layer_file_name
from llmpq.quant.options import WeightOption, outlier_count, weight_option
from llmpq.quant.packing import pack
from llmpq.quant.rtn import rtn

METHODS = ("gptq", "rtn", "auto-gptq")
DEFAULTS: Mapping[str, Any] = {
    "method": "gptq",
    "damping": 0.01,
    "act_order": False,
    "static_groups": False,
}


def quantise_group(
    checkpoint_dir: str | Path,
    calibration_file: str | Path,
    out_dir: str | Path,
    *,
    first: int,
    last: int,
    options: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write layers ``first`` … ``last`` (both included) at ``options`` into ``out_dir`` with manifest.json (artifact ``quantised``).

    ``settings``: DEFAULTS and what overrides them. Finished layer files are kept in the sibling ``<out_dir>.partial`` until all are
    there, and a later run takes them up if they came from the same weights, calibration, settings and code; then the directory is
    moved in place at once. Returns the manifest. Raises ConfigError for bad settings, ArtifactError for bad files.
    """
    started, out = time.perf_counter(), Path(out_dir)
    chosen = _checked_settings(settings)
    known = [weight_option(name) for name in dict.fromkeys(options)]
    checkpoint = Checkpoint(checkpoint_dir)
    spec = checkpoint.spec
    if not 0 <= first <= last < spec.layers:
        raise ConfigError(f"cannot quantise layers {first} to {last}: the model has layers 0 to {spec.layers - 1}")
    calibration = Calibration(calibration_file)
    calibration.check(spec.operators(), spec.layers)
    recipe = {"settings": chosen, "calibration": artifacts.sha256_file(calibration_file), "code": _code()}
    progress, rows = Progress(f"quantise {out.name}", (last - first + 1) * len(known)), []
    with _resumable(out) as partial, AutoGptq() as package:
        for index in range(first, last + 1):
            work = _LayerWork(index, checkpoint.layer(index), spec, calibration, chosen, package)
            own = artifacts.digest({**recipe, "weights": work.weights_digest()})
            for option in known:
                rows.append(_row(partial, work, option, own))
                progress.step(f"(layer {index}, option {option.name})")
        body = {
            "model": Path(checkpoint_dir).parent.name if Path(checkpoint_dir).name == "checkpoint" else Path(checkpoint_dir).name,
            "settings": chosen,
            "first_layer": first,
            "last_layer": last,
            "options": [option.name for option in known],
            "rows": rows,
            "seconds": round(time.perf_counter() - started, 3),
        }
        return artifacts.write(partial / "manifest.json", "quantised", body, source="computed", inputs=[calibration_file], config=chosen)


def read_manifests(quantised_dirs: Sequence[str | Path]) -> dict[tuple[int, str], dict[str, Any]]:
    """Rows of the groups' manifests by (layer, option), each with ``path`` of its layer file; a pair found twice is an error."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for directory in map(Path, quantised_dirs):
        for row in artifacts.read(directory / "manifest.json", "quantised")["rows"]:
            key = (row["layer"], row["option"])
            if key in found:
                raise ArtifactError(
                    f"{directory}: layer {key[0]} at option '{key[1]}' is also in {found[key]['path'].parent}; remove one group"
                )
            found[key] = {**row, "path": directory / row["file"]}
    return found


class _LayerWork:
    """What the options of one layer share: its weights, its statistics, and the codes of every distinct grid."""

    def __init__(
        self,
        index: int,
        tensors: dict[str, Tensor],
        spec: ModelSpec,
        calibration: Calibration,
        settings: Mapping[str, Any],
        package: AutoGptq,
    ) -> None:
        self.index, self.tensors, self.spec, self.settings, self._package = index, tensors, spec, settings, package
        self.operators = list(spec.operators())
        self._calibration = calibration
        self._statistics: dict[str, InputStatistics] = {}
        self._factors: dict[tuple[str, tuple[int, ...]], HessianFactor] = {}
        self._quantised: dict[tuple[str, tuple[int, int, bool, bool]], tuple[Quantised, dict[str, float]]] = {}

    def weights_digest(self) -> str:
        return plain_layer(self.tensors, self.operators, self.index, "32").content_sha256()

    def layer(self, option: WeightOption) -> LayerTensors:
        """The layer's tensors at ``option``; info holds the loss of every operator."""
        if not option.quantised:
            return plain_layer(self.tensors, self.operators, self.index, option.name)
        stored, losses = {}, {}
        for name in self.operators:
            quantised, losses[name] = self._operator(name, option)
            stored[name] = stored_tensors(option, quantised)
        return LayerTensors(self.index, option.name, stored, layer_vectors(self.tensors, self.operators), {"losses": losses})

    def plain_losses(self, layer: LayerTensors) -> dict[str, dict[str, float]]:
        """Losses of an unquantised option: what rounding to its type does to the outputs."""
        weights = {name: tensors["weight"].float() for name, tensors in layer.operators.items()}
        return {name: self._loss(name, weight) for name, weight in weights.items()}

    def _operator(self, name: str, option: WeightOption) -> tuple[Quantised, dict[str, float]]:
        key = (name, option.grid_key)
        if key not in self._quantised:
            weight, statistics = self.tensors[f"{name}.weight"], self.statistics(name)
            grid, kept = Grid.of(option), self._kept(option, statistics)
            try:
                if option.group_size and weight.shape[1] % option.group_size:
                    raise LlmpqError(f"{weight.shape[1]} inputs are no multiple of the group size {option.group_size}")
                found = self._codes(name, weight, grid, kept)
            except LlmpqError as error:
                raise LlmpqError(f"layer {self.index}, operator {name}, option '{option.name}': {error}") from None
            self._quantised[key] = found, self._loss(name, found.dequantised(option.group_size))
        return self._quantised[key]

    def _codes(self, name: str, weight: Tensor, grid: Grid, kept: tuple[int, ...]) -> Quantised:
        if self.settings["method"] == "rtn":
            return rtn(weight, grid, kept=kept)
        if self.settings["method"] == "auto-gptq":
            if kept:
                raise LlmpqError("auto-gptq cannot keep columns in fp32; leave this option out, or take method gptq")
            how = {key: self.settings[key] for key in ("damping", "act_order", "static_groups")}
            return self._package.quantise(weight, self.statistics(name).hessian, grid, **how)
        return gptq(weight, self._factor(name, kept), grid, static_groups=self.settings["static_groups"])

    def _kept(self, option: WeightOption, statistics: InputStatistics) -> tuple[int, ...]:
        """The columns with the largest inputs seen in calibration (LLM.int8, section 3.2), ascending."""
        if not option.outliers:
            return ()
        count = outlier_count(len(statistics.max_abs))
        return tuple(sorted(torch.argsort(statistics.max_abs, descending=True, stable=True)[:count].tolist()))

    def _factor(self, name: str, kept: tuple[int, ...]) -> HessianFactor:
        key = (name, kept)
        if key not in self._factors:
            hessian = self.statistics(name).hessian
            self._factors[key] = factorise(hessian, damping=self.settings["damping"], act_order=self.settings["act_order"], kept=kept)
        return self._factors[key]

    def statistics(self, name: str) -> InputStatistics:
        if name not in self._statistics:
            self._statistics[name] = self._calibration.operator(self.index, name)
        return self._statistics[name]

    def _loss(self, name: str, approximation: Tensor) -> dict[str, float]:
        weight, hessian = self.tensors[f"{name}.weight"], self.statistics(name).hessian
        energy = output_loss(weight, torch.zeros_like(weight), hessian)
        loss = max(output_loss(weight, approximation, hessian), 0.0)
        return {"loss": loss, "relative_loss": loss / energy if energy > 0 else 0.0}


def stored_tensors(option: WeightOption, quantised: Quantised) -> dict[str, Tensor]:
    """One operator as its layer file holds it."""
    codes = quantised.codes if option.bits == 8 else pack(quantised.codes.int() + 2 ** (option.bits - 1), option.bits)
    stored = {"codes": codes.contiguous(), "scales": quantised.scales}
    if quantised.offsets is not None:
        stored["offsets"] = quantised.offsets
    for name in stored.keys() & {"scales", "offsets"}:
        stored[name] = stored[name].to(torch.bfloat16) if option.group_size else stored[name].to(torch.bfloat16).squeeze(1)
    if option.outliers:
        stored["outlier_columns"] = quantised.kept.to(torch.int32)
        stored["outlier_weight"] = quantised.kept_weight.contiguous()
    return stored


def _row(partial: Path, work: _LayerWork, option: WeightOption, recipe: str) -> dict[str, Any]:
    """Make one layer file, or take it over from an earlier run; its row of the manifest."""
    started, path = time.perf_counter(), partial / layer_file_name(work.index, option.name)
    layer = _finished(path, recipe, work.index, option.name)
    if layer is None:
        layer = work.layer(option)
        losses = layer.info.get("losses") or work.plain_losses(layer)
        layer.info = {"recipe": recipe, "losses": losses, "settings": dict(work.settings)}
        write_layer(path, layer)
    return {
        "layer": work.index,
        "option": option.name,
        "file": path.name,
        "sha256": layer.content_sha256(),
        "stored_bytes": layer.stored_bytes,
        "resident_bytes": resident_layer_bytes(work.spec, option.name),
        "seconds": round(time.perf_counter() - started, 3),
        "operators": layer.info["losses"],
    }


def _finished(path: Path, recipe: str, index: int, option: str) -> LayerTensors | None:
    if not path.is_file():
        return None
    try:
        layer = read_layer(path, index, option)
    except ArtifactError as error:
        print(f"quantise: doing {path.name} again: {error}", file=sys.stderr)
        return None
    if layer.info.get("recipe") == recipe:
        return layer
    print(f"quantise: doing {path.name} again: it was made from other weights, calibration, settings or code", file=sys.stderr)
    return None


@contextmanager
def _resumable(out: Path) -> Iterator[Path]:
    """A directory beside ``out`` that survives a failure and replaces ``out`` on success."""
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    wanted = {row["file"] for row in artifacts.read(partial / "manifest.json", "quantised")["rows"]} | {"manifest.json"}
    for path in partial.iterdir():
        if path.name not in wanted:  # options of an earlier run that are no longer asked for
            path.unlink()
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


def _checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {key: settings.get(key, default) for key, default in DEFAULTS.items()}
    if chosen["method"] not in METHODS:
        raise ConfigError(f"quantizer.method '{chosen['method']}' is unknown; known are {', '.join(METHODS)}")
    if chosen["damping"] < 0:
        raise ConfigError("quantizer.damping must not be negative")
    if chosen["method"] == "auto-gptq":
        chosen["package"] = f"auto-gptq {AutoGptq().version}"
    return chosen


def _code() -> str:
    from llmpq.sources import code_digest

    return code_digest("llmpq.quant.quantise")
