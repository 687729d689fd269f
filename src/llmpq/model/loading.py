"""Building a StageModel: from the layer files of quantise, or straight from the checkpoint for options that need no calibration."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llmpq.model.checkpoint import Checkpoint
from llmpq.model.config_file import ModelError
from llmpq.model.decoder import DecoderLayer, Operator
from llmpq.model.ends import Embedding, Head
from llmpq.model.stage import StageModel

UNQUANTISED = ("32", "16")


def make_linear(option, tensors, bias):  # TEMPORARY until llmpq.quant.kernels.cpu has it
    weight = tensors["weight"]
    if option == "32":
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed)


class StageLoader:
    """Loads stages of one model; ``on_bytes(kind, n)`` is told resident bytes before each allocation and may refuse by raising."""

    def __init__(
        self,
        checkpoint_dir: str | Path,
        quantised_dir: str | Path | None,
        end_option: str = "16",
        on_bytes: Callable[[str, int], None] | None = None,
    ) -> None:
        self.checkpoint = Checkpoint(checkpoint_dir)
        self.quantised_dir = quantised_dir
        if end_option not in UNQUANTISED:
            raise ModelError(f"embedding and head can be kept at {' or '.join(UNQUANTISED)} bits, not '{end_option}'")
        self.end_option, self.on_bytes = end_option, on_bytes
        self.resident_bytes = {"weights": 0, "embedding": 0, "head": 0}

    def load(self, first_layer: int, options: Sequence[str], has_embedding: bool, has_head: bool) -> StageModel:
        spec = self.checkpoint.spec
        embedding = self._embedding() if has_embedding else None
        layers = [self._layer(first_layer + offset, option) for offset, option in enumerate(options)]
        model = StageModel(spec, first_layer, layers, embedding, self._head() if has_head else None)
        model.resident_bytes = self.resident_bytes
        return model

    def _account(self, kind: str, count: int) -> None:
        if self.on_bytes is not None:
            self.on_bytes(kind, count)
        self.resident_bytes[kind] += count

    def _layer(self, index: int, option: str) -> DecoderLayer:
        tensors = self.checkpoint.layer(index)
        self._account("weights", 0)
        spec = self.checkpoint.spec
        operators = {name: make_linear(option, {"weight": tensors[f"{name}.weight"]}, tensors.get(f"{name}.bias")) for name in spec.operators()}
        return DecoderLayer(spec, tensors, operators)

    def _embedding(self) -> Embedding:
        self._account("embedding", 0)
        tensors = self.checkpoint.embedding()
        if self.end_option == "16":
            tensors["embedding.weight"] = tensors["embedding.weight"].half()
        return Embedding(self.checkpoint.spec, tensors)

    def _head(self) -> Head:
        self._account("head", 0)
        tensors = self.checkpoint.head()
        return Head(self.checkpoint.spec, tensors, make_linear(self.end_option, {"weight": tensors["head.weight"]}, None))
