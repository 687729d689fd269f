"""A tiny model of every family with layers at several options, exported."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from serve_cases import quantised_layers
from tiny_families import CASES, Peer, build
from torch import Tensor

from llmpq.export.assignment import Assignment
from llmpq.export.targets import target_named
from llmpq.export.write import export_checkpoint
from llmpq.model.checkpoint import Checkpoint
from llmpq.quant.dequantise import dequantise
from llmpq.quant.files import read_layer
from llmpq.quant.layer_index import find_layer_file
from llmpq.quant.options import OPTIONS

FAMILIES = ("llama", "llama-mqa-biases", "mistral-gqa-window", "qwen2-gqa", "qwen3-gqa-tied", "opt", "bloom")


@dataclass(frozen=True)
class Exported:
    """A model, its layer files and what was asked for."""

    peer: Peer
    quantised: Path
    options: tuple[str, ...]

    def export(self, target: str, out: Path, **changes: Any) -> dict[str, Any]:
        """Export it; ``changes`` to the assignment. Returns export.json."""
        assignment = replace(Assignment("test", self.options), **changes)
        return export_checkpoint(self.peer.directory, self.quantised, assignment, target_named(target), out)

    def weights(self, layer: int) -> dict[str, Tensor]:
        """What the layer's operators stand for, fp32."""
        option = self.options[layer]
        stored = read_layer(find_layer_file(self.quantised, layer, option))
        return {f"{name}.weight": dequantise(OPTIONS[option], tensors) for name, tensors in stored.operators.items()}


def make(case: str, directory: Path, options: Sequence[str], hidden: int = 64) -> Exported:
    """A random model of the case, wide enough for groups of 64, its layers rounded to nearest at ``options``."""
    family, settings = CASES[case]
    wide: dict[str, Any] = {"hidden_size": hidden}
    wide |= {"n_layer": len(options)} if family == "Bloom" else {"num_hidden_layers": len(options), "num_attention_heads": 4}
    wide |= {"ffn_dim": 128} if family == "OPT" else {} if family == "Bloom" else {"intermediate_size": 128}
    if "num_key_value_heads" in settings:
        wide |= {"num_key_value_heads": {1: 1, 6: 4}.get(settings["num_key_value_heads"], 2), "head_dim": 32}
    peer = build(case, directory / "model", **wide)
    return Exported(peer, quantised_layers(peer.directory, directory / "layers", options), tuple(options))


def ids() -> Tensor:
    """Two sequences of 12 tokens."""
    return torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))


def checkpoint_of(state: dict[str, Tensor], config: Path, directory: Path) -> Checkpoint:
    """A model's dense weights as a checkpoint of ours, with the config.json of its origin."""
    from safetensors.torch import save_file

    directory.mkdir()
    (directory / "config.json").write_bytes(config.read_bytes())
    kept = {name: tensor.float().contiguous().clone() for name, tensor in state.items() if tensor.is_floating_point()}
    save_file(kept, directory / "model.safetensors")
    return Checkpoint(directory)
