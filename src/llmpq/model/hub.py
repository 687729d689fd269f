"""Models of the Hugging Face hub, through its own client and its own cache."""

from collections.abc import Sequence
from pathlib import Path

from llmpq.errors import first_line
from llmpq.model.config_file import ModelError
from llmpq.model.pickled import PICKLE, PICKLE_INDEX
from llmpq.model.weights import INDEX, SINGLE


def download(name: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """The folder of ``name`` (owner/name) in the hub's cache with the files that ``wanted`` matches; pytorch_model*.bin only where there
    are no safetensors. With HF_HUB_OFFLINE=1 the cache is all that is looked at. Raises ModelError where the model cannot be had."""
    folder = _snapshot(name, revision, wanted)
    if not any((folder / file).is_file() for file in (SINGLE, INDEX)):
        folder = _snapshot(name, revision, [*wanted, PICKLE, PICKLE_INDEX, "pytorch_model-*.bin"])
    return folder


def _snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the client raises dozens of kinds, all meaning: not to be had
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"the hub model '{name}' (revision {revision or 'main'}) is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE "
                "is set: unset it, or fetch the model where there is a network"
            ) from None
        raise ModelError(f"the hub model '{name}' cannot be downloaded ({first_line(error)}); check name, revision and network") from None
