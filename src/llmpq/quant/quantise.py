"""Quantise a group of layers at all options: one file per (layer, option) and a manifest, resuming where a killed run stopped."""

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
from llmpq.quant.bnb import rounded
from llmpq.quant.bytes import resident_layer_bytes
from llmpq.quant.calibration import Calibration, InputStatistics
from llmpq.quant.dequantise import dequantise
from llmpq.quant.files import LayerTensors, layer_vectors, plain_layer, write_layer
from llmpq.quant.gptq import HessianFactor, Quantised, factorise, gptq_refitted, output_loss
from llmpq.quant.grid import Grid
from llmpq.quant.layer_index import layer_file_name
from llmpq.quant.options import WeightOption, outlier_count, weight_option
from llmpq.quant.packing import pack
from llmpq.quant.resume import finished, model_name, resumable
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
    with resumable(out, "quantised") as partial, AutoGptq() as package:
        for index in range(first, last + 1):
            work = _LayerWork(index, checkpoint.layer(index), spec, calibration, chosen, package)
            own = artifacts.digest({**recipe, "weights": work.weights_digest()})
            for row in _layer_rows(partial, work, known, own):
                rows.append(row)
                progress.step(f"(layer {index}, option {row['option']})")
            del work  # before the next layer is read
        body = {
            "model": model_name(checkpoint_dir),
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
    """One layer at several options, an operator at a time: its statistics, its factor and the codes that options share go with it."""

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
        self._calibration = calibration

    def weights_digest(self) -> str:
        return plain_layer(self.tensors, self.spec.operators(), self.index, "32").content_sha256()

    def layers(self, options: Sequence[WeightOption]) -> list[LayerTensors]:
        """The layer's tensors at each of ``options``; info holds the loss of every operator, of unquantised options that of their type."""
        plain = [option for option in options if not option.quantised]
        made = {option.name: plain_layer(self.tensors, self.spec.operators(), self.index, option.name) for option in plain}
        made |= {option.name: self._empty(option) for option in options if option.quantised}
        for layer in made.values():
            layer.info["losses"] = {}
        for name in self.spec.operators():
            statistics = self._calibration.operator(self.index, name)
            for option, tensors in self._operator(name, statistics, [option for option in options if option.quantised]):
                made[option.name].operators[name] = tensors
            weight = self.tensors[f"{name}.weight"]
            energy = output_loss(weight, torch.zeros_like(weight), statistics.hessian)
            for option in options:
                loss = max(output_loss(weight, dequantise(option, made[option.name].operators[name]), statistics.hessian), 0.0)
                made[option.name].info["losses"][name] = {"loss": loss, "relative_loss": loss / energy if energy > 0 else 0.0}
            del statistics  # a Hessian is as large as the layer: before the next one is read
        return [made[option.name] for option in options]

    def _empty(self, option: WeightOption) -> LayerTensors:
        return LayerTensors(self.index, option.name, {}, layer_vectors(self.tensors, self.spec.operators()))

    def _operator(
        self, name: str, statistics: InputStatistics, options: Sequence[WeightOption]
    ) -> Iterator[tuple[WeightOption, dict[str, Tensor]]]:
        """The operator's stored tensors at every option. Options of one grid share codes, all that keep the same columns a factor."""
        weight, factors = self.tensors[f"{name}.weight"], _Factors(statistics.hessian, self.settings)
        for key in dict.fromkeys(option.grid_key for option in sorted(options, key=lambda option: option.outliers)):
            alike = [option for option in options if option.grid_key == key]
            option, kept = alike[0], self._kept(alike[0], statistics)
            with self._named(name, option):
                if option.group_size and weight.shape[1] % option.group_size:
                    raise LlmpqError(f"{weight.shape[1]} inputs are no multiple of the group size {option.group_size}")
                tensors = rounded(option, weight) if option.package else stored_tensors(option, self._codes(weight, factors, option, kept))
            yield from ((option, tensors) for option in alike)

    @contextmanager
    def _named(self, name: str, option: WeightOption) -> Iterator[None]:
        """Say where it was, when quantising fails."""
        try:
            yield
        except LlmpqError as error:
            raise LlmpqError(f"layer {self.index}, operator {name}, option '{option.name}': {error}") from None

    def _codes(self, weight: Tensor, factors: "_Factors", option: WeightOption, kept: tuple[int, ...]) -> Quantised:
        grid = Grid.of(option)
        if self.settings["method"] == "rtn":
            return rtn(weight, grid, kept=kept)
        if self.settings["method"] == "auto-gptq":
            if kept:
                raise LlmpqError("auto-gptq cannot keep columns in fp32; leave this option out, or take method gptq")
            how = {key: self.settings[key] for key in ("damping", "act_order", "static_groups")}
            return self._package.quantise(weight, factors.hessian, grid, **how)
        static = self.settings["static_groups"]
        return gptq_refitted(weight, factors.keeping(kept), factors.hessian, grid, static_groups=static)

    def _kept(self, option: WeightOption, statistics: InputStatistics) -> tuple[int, ...]:
        """The columns with the largest inputs seen in calibration (LLM.int8, section 3.2), ascending."""
        if not option.outliers:
            return ()
        count = outlier_count(len(statistics.max_abs))
        return tuple(sorted(torch.argsort(statistics.max_abs, descending=True, stable=True)[:count].tolist()))


class _Factors:
    """The factor of one operator's Hessian, of which the last one asked for is held: it is as large as the Hessian itself."""

    def __init__(self, hessian: Tensor, settings: Mapping[str, Any]) -> None:
        self.hessian, self._settings = hessian, settings
        self._kept: tuple[int, ...] | None = None
        self._factor: HessianFactor | None = None

    def keeping(self, kept: tuple[int, ...]) -> HessianFactor:
        if self._factor is None or self._kept != kept:
            self._factor, self._kept = None, kept
            damping, act_order = self._settings["damping"], self._settings["act_order"]
            self._factor = factorise(self.hessian, damping=damping, act_order=act_order, kept=kept)
        return self._factor


def nearest(option: WeightOption, weight: Tensor, kept: Sequence[int] = ()) -> dict[str, Tensor]:
    """``weight`` fp32 [out, in] as a layer file of ``option`` holds it, rounded to nearest (``kept``: outlier columns)."""
    if not option.quantised:
        return {"weight": weight}
    if option.package:
        return rounded(option, weight)
    return stored_tensors(option, rtn(weight, Grid.of(option), kept=kept))


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


def _layer_rows(partial: Path, work: _LayerWork, options: Sequence[WeightOption], recipe: str) -> Iterator[dict[str, Any]]:
    """Make the layer files that an earlier run has not made; a row of the manifest for every option."""
    taken_over: dict[str, dict[str, Any]] = {}
    for option in options:
        started, path = time.perf_counter(), partial / layer_file_name(work.index, option.name)
        layer = finished(path, recipe, work.index, option.name)
        if layer is not None:
            taken_over[option.name] = _row(path, layer, work.spec, time.perf_counter() - started)
    missing, started = [option for option in options if option.name not in taken_over], time.perf_counter()
    made = dict(zip((option.name for option in missing), work.layers(missing) if missing else [], strict=True))
    for option in options:
        if option.name in taken_over:
            yield taken_over[option.name]
            continue
        path, layer = partial / layer_file_name(work.index, option.name), made.pop(option.name)
        layer.info |= {"recipe": recipe, "settings": dict(work.settings)}
        write_layer(path, layer)
        yield _row(path, layer, work.spec, (time.perf_counter() - started) / len(missing))


def _row(path: Path, layer: LayerTensors, spec: ModelSpec, seconds: float) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "option": layer.option,
        "file": path.name,
        "sha256": layer.content_sha256(),
        "stored_bytes": layer.stored_bytes,
        "resident_bytes": resident_layer_bytes(spec, layer.option),
        "seconds": round(seconds, 3),
        "operators": layer.info["losses"],
    }


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
