"""An assignment of options → a checkpoint directory that other programs load: the very codes and scales that are served here."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmpq import artifacts
from llmpq.export.assignment import Assignment
from llmpq.export.target import ExportError, Target
from llmpq.export.vllm import LAUNCHER, Launch
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.config_file import ConfigFile
from llmpq.model.loading import read_stored_end, read_stored_layer
from llmpq.model.weights import INDEX, SINGLE
from llmpq.progress import Progress
from llmpq.quant.bytes import End
from llmpq.quant.files import LayerTensors
from llmpq.quant.layer_index import Folders, combined_digest, layer_line
from llmpq.quant.options import WeightOption

RECORD = "export.json"
SHARD_BYTES = 2 << 30
"""A file is closed once it holds this much: memory holds one file's tensors at a time."""

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
_NOT_COPIED = {"config.json", RECORD, INDEX, "pytorch_model.bin.index.json"}


def export_checkpoint(
    checkpoint_dir: str | Path,
    quantised_dir: Folders | None,
    assignment: Assignment,
    target: Target,
    out_dir: str | Path,
    *,
    same_as: Mapping[str, str] | None = None,
    launch: Callable[[str], Launch] | None = None,
    inputs: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """Write ``out_dir`` (config.json, weights, tokenizer, generation settings, export.json) at once, and return export.json.

    ``quantised_dir`` is a folder of layer groups, or the groups; without it options 16 and 32 are read from the checkpoint. ``same_as``:
    weights_sha256 of files, by their names, that the export must agree with. ``launch``: how the checkpoint is served, once the type that
    it computes in is known; its files are written beside the weights. An export that was there before is replaced, any other directory
    refused. Raises ExportError where the target cannot express the assignment or the weights are not the same ones.
    """
    out = Path(out_dir)
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: exists and is no export of llmpq; remove it, or give another directory")
    checkpoint = Checkpoint(checkpoint_dir)
    options = assignment.checked(checkpoint.spec, target)
    with _whole(out) as partial:
        shards = _Shards(partial)
        lines = _write_weights(shards, checkpoint, quantised_dir, assignment, options, target)
        digest = combined_digest(lines)
        for name, expected in (same_as or {}).items():
            if digest != expected:
                raise ExportError(
                    f"{name} is of other weights ({expected[:12]}…) than these ({digest[:12]}…); make both from the same files"
                )
        shards.finish()
        settings = target.settings(checkpoint.names, options) if any(option.quantised for option in options) else None
        dtype = _computing_type(assignment, shards.beyond_half)
        _write_config(partial, checkpoint, settings, dtype)
        served = None if launch is None else launch(dtype)
        if served is not None:
            _write_launch(partial, served)
        body = {
            "target": target.name,
            "family": checkpoint.spec.family,
            "options": list(assignment.options),
            "embedding_option": assignment.embedding_option,
            "head_option": assignment.head_option,
            "dtype": dtype,
            "weights_sha256": digest,
            **({} if served is None else {"vllm": served.body()}),
            "files": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
        }
        return artifacts.write(partial / RECORD, "export", body, source="computed", inputs=inputs)


def _write_launch(directory: Path, served: Launch) -> None:
    for name, text in served.files().items():
        artifacts.write_text(directory / name, text)
    (directory / LAUNCHER).chmod(0o755)


def _computing_type(assignment: Assignment, beyond_half: bool) -> str:
    """What readers compute in unless told otherwise: float16, the type of 16-bit weights; bfloat16 where only that holds every scale;
    float32 where a weight is."""
    if "32" in (*assignment.options, assignment.embedding_option, assignment.head_option):
        return "float32"
    return "bfloat16" if beyond_half else "float16"


def _write_weights(
    shards: "_Shards",
    checkpoint: Checkpoint,
    quantised_dir: Folders | None,
    assignment: Assignment,
    options: list[WeightOption],
    target: Target,
) -> list[str]:
    """Add all tensors, front to back; returns the lines that the digest of the weights is made of."""
    progress = Progress("export", checkpoint.spec.layers)
    lines = [_add_end(shards, "embedding", assignment.embedding_option, checkpoint)]
    for index, option in enumerate(options):
        layer, digest = read_stored_layer(checkpoint, quantised_dir, index, option.name)
        try:
            shards.add(_layer_tensors(checkpoint, layer, option, target))
        except ExportError as error:
            raise ExportError(f"layer {index} at option '{option.name}': {error}") from None
        lines.append(layer_line(index, option.name, digest))
        progress.step("layers")
    return [*lines, _add_end(shards, "head", assignment.head_option, checkpoint)]


def _add_end(shards: "_Shards", end: End, option: str, checkpoint: Checkpoint) -> str:
    """Add an end's tensors, a head tied to the embedding left out; returns its line."""
    names, stored = checkpoint.names, read_stored_end(checkpoint, None, end, option)
    left_out = {"head"} if checkpoint.spec.tied_embeddings else set()
    parted = _parted(stored.named())
    shards.add({f"{names.full(names.ends[part])}.{kind}": tensor for (part, kind), tensor in parted if part not in left_out})
    return layer_line(end, option, stored.content_sha256())


def _parted(tensors: Mapping[str, Tensor]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    for name, tensor in tensors.items():
        part, _, kind = name.rpartition(".")
        yield (part, kind), tensor


def _layer_tensors(checkpoint: Checkpoint, layer: LayerTensors, option: WeightOption, target: Target) -> dict[str, Tensor]:
    """A layer's tensors under the names of the checkpoint's own modules, as the target has them."""
    names, spec, found, index = checkpoint.names, checkpoint.spec, dict[str, Tensor](), int(layer.layer)
    for operator, stored in layer.operators.items():
        split = {part: names.split(spec, operator, tensor) for part, tensor in stored.items()}
        for module in names.operators[operator]:
            own = {part: modules[module] for part, modules in split.items()}
            written = target.module(option, own) if option.quantised else own
            found |= {f"{names.full(module, index)}.{part}": tensor for part, tensor in written.items()}
    for (name, kind), tensor in _parted(layer.vectors):
        parts = names.split(spec, name, tensor) if name in names.operators else {names.layer_norms[name]: tensor}
        found |= {f"{names.full(module, index)}.{kind}": part for module, part in parts.items()}
    return found


class _Shards:
    """Files of at most about SHARD_BYTES, named once it is known how many there are."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.placed: dict[str, int] = {}
        self._open: dict[str, Tensor] = {}
        self._files, self._total = 0, 0
        self.beyond_half = False
        """Whether fp16 lacks the range of some scale, which are bf16."""

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Append tensors."""
        for name, tensor in tensors.items():
            if name.endswith((".weight_scale", ".scales")):
                self.beyond_half |= not torch.equal(tensor.half().float(), tensor.float())
            self._open[name] = tensor.contiguous()
        if sum(tensor.nbytes for tensor in self._open.values()) >= SHARD_BYTES:
            self._close()

    def finish(self) -> None:
        """Close the last file and write the index where there are several."""
        self._close()
        if self._files == 1:
            self._path(1).rename(self.directory / SINGLE)
            return
        named = {number: f"model-{number:05d}-of-{self._files:05d}.safetensors" for number in range(1, self._files + 1)}
        for number, name in named.items():
            self._path(number).rename(self.directory / name)
        index = {"metadata": {"total_size": self._total}, "weight_map": {name: named[file] for name, file in sorted(self.placed.items())}}
        artifacts.write_text(self.directory / INDEX, artifacts.dumps(index))

    def _path(self, number: int) -> Path:
        return self.directory / f"part-{number}.safetensors"

    def _close(self) -> None:
        if self._open:
            self._files += 1
            with artifacts.atomic_path(self._path(self._files)) as temporary:
                # clones: parts of one fused tensor share its storage, which safetensors does not write
                save_file({name: tensor.clone() for name, tensor in self._open.items()}, temporary, metadata={"format": "pt"})
            self._total += sum(tensor.nbytes for tensor in self._open.values())
            self.placed |= dict.fromkeys(self._open, self._files)
            self._open = {}


def _write_config(directory: Path, checkpoint: Checkpoint, settings: Mapping[str, Any] | None, dtype: str) -> None:
    """config.json with the quantisation, and everything beside the weights that the checkpoint has."""
    config = {key: value for key, value in ConfigFile.read(checkpoint.directory).values.items() if key not in ("auto_map", "torch_dtype")}
    config |= {"dtype": dtype, **({"quantization_config": dict(settings)} if settings else {})}
    artifacts.write_text(directory / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for pattern in _COPIED:
        for path in sorted(checkpoint.directory.glob(pattern)):
            if path.name not in _NOT_COPIED:
                shutil.copyfile(path, directory / path.name)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A directory beside ``out`` that takes its place on success and is removed on failure."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
