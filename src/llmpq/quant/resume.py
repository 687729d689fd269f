"""Folders of quantised weights that a killed run leaves half done and the next one finishes."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.quant.files import LayerTensors, read_layer
from llmpq.quant.layer_index import Place


@contextmanager
def resumable(out: Path, kind: str) -> Iterator[Path]:
    """A folder beside ``out`` that survives a failure and replaces ``out`` on success, with the files of its manifest.json only.

    ``kind`` is the manifest's artifact kind.
    """
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    wanted = {row["file"] for row in artifacts.read(partial / "manifest.json", kind)["rows"]} | {"manifest.json"}
    for path in partial.iterdir():
        if path.name not in wanted:  # options of an earlier run that are no longer asked for
            path.unlink()
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


def finished(path: Path, recipe: str, place: Place, option: str) -> LayerTensors | None:
    """The weights of ``path`` where an earlier run made them by the same ``recipe``; else None, with a word on why if there is a file."""
    if not path.is_file():
        return None
    try:
        layer = read_layer(path, place, option)
    except ArtifactError as error:
        print(f"quantise: doing {path.name} again: {error}", file=sys.stderr)
        return None
    if layer.info.get("recipe") == recipe:
        return layer
    print(f"quantise: doing {path.name} again: it was made from other weights, calibration, settings or code", file=sys.stderr)
    return None


def model_name(checkpoint_dir: str | Path) -> str:
    """What the model of a checkpoint directory is called: NAME/checkpoint or NAME."""
    directory = Path(checkpoint_dir)
    return directory.parent.name if directory.name == "checkpoint" else directory.name
