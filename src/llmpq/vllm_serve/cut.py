"""A model cut down to few layers and exported for vLLM: what a profile through vLLM is taken of.

Weights are rounded to nearest: kernels are equally fast on any codes, and a profile must not depend on a quantised model.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from llmpq.export.assignment import Assignment
from llmpq.export.vllm import Vllm
from llmpq.export.write import export_checkpoint
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.config_file import ConfigFile
from llmpq.quant.files import LayerTensors, layer_vectors, plain_layer, write_layer
from llmpq.quant.layer_index import layer_file_name
from llmpq.quant.options import weight_option
from llmpq.quant.quantise import nearest

_LAYERS = ("num_hidden_layers", "n_layer")  # what families call their number of layers


def export_cut(checkpoint_dir: str | Path, options: Sequence[str], folder: Path) -> Path:
    """The first layers of a model at ``options``, one each, with its embedding and head, as a checkpoint for vLLM on the CPU.

    Everything is written into ``folder``, which must be there; returns the checkpoint's.
    """
    cut, layers, out = folder / "cut", folder / "layers", folder / "export"
    for each in (cut, layers):
        each.mkdir()
    whole = ConfigFile.read(checkpoint_dir).values
    shorter = {key: len(options) for key in _LAYERS if key in whole} | ({"layer_types": None} if "layer_types" in whole else {})
    for path in Path(checkpoint_dir).absolute().iterdir():
        (cut / path.name).symlink_to(path)
    (cut / "config.json").unlink()
    (cut / "config.json").write_text(json.dumps({**whole, **shorter}), encoding="utf-8")
    checkpoint = Checkpoint(cut)
    for index, option in enumerate(options):
        write_layer(layers / layer_file_name(index, option), rounded_layer(checkpoint, index, option))
    export_checkpoint(cut, layers, Assignment("profile", tuple(options)), Vllm("cpu"), out)
    return out


def rounded_layer(checkpoint: Checkpoint, index: int, name: str) -> LayerTensors:
    """A layer at an option as its layer file has it, rounded to nearest where that is quantised."""
    tensors, option, operators = checkpoint.layer(index), weight_option(name), checkpoint.spec.operators()
    if not option.quantised:
        return plain_layer(tensors, operators, index, option.name)
    rounded = {operator: nearest(option, tensors[f"{operator}.weight"]) for operator in operators}
    return LayerTensors(index, option.name, rounded, layer_vectors(tensors, operators))
