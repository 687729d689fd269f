"""Building a StageModel: from the layer files of quantise, or straight from the checkpoint for options that need no calibration."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from llmpq.errors import ConfigError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding, Head
from llmpq.model.stage import StageModel
from llmpq.quant.bytes import resident_end_bytes, resident_layer_bytes
from llmpq.quant.files import LayerTensors, plain_layer, read_layer, tensors_sha256
from llmpq.quant.kernels.cpu import check_half_range, make_linear
from llmpq.quant.layer_index import Folders, find_layer_file, layer_line, read_header
from llmpq.quant.options import OUTLIER_COLUMNS, weight_option

_YARDSTICK = "32"
END_OPTIONS = ("16", "32")


class StageLoader:
    """Loads a stage of one model; ``on_bytes(kind, n)`` is told resident bytes before each packing and may refuse by raising.

    Layers at option 32 come from the checkpoint, and so does option 16 when there is no ``quantised_dir``; all others from their layer
    files. One layer at a time is read, packed and its raw tensors freed, so the peak is the stage plus one layer.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        quantised_dir: Folders | None = None,
        end_option: str = "16",
        on_bytes: Callable[[str, int], None] | None = None,
    ) -> None:
        if end_option not in END_OPTIONS:
            raise ConfigError(f"embedding and head are kept at {' or '.join(END_OPTIONS)} bits, not '{end_option}'")
        self.checkpoint = Checkpoint(checkpoint_dir)
        self.quantised_dir, self.end_option, self.on_bytes = quantised_dir, end_option, on_bytes
        self._resident = {"weights": 0, "embedding": 0, "head": 0}
        self._lines: dict[str, list[str]] = {}

    def load(self, first_layer: int, options: Sequence[str], has_embedding: bool, has_head: bool) -> StageModel:
        """Layers first_layer … first_layer + len(options) − 1, one option each, and the ends asked for."""
        for option in options:
            weight_option(option)
        self._resident, self._lines = dict.fromkeys(self._resident, 0), {"embedding": [], "layers": [], "head": []}
        # The ends first: reading them takes the most beside what is kept, and so far nothing else is.
        embedding = self._embedding() if has_embedding else None
        head = self._head() if has_head else None
        _return_freed_memory()
        layers = [self._layer(first_layer + offset, option) for offset, option in enumerate(options)]
        lines = [line for part in self._lines.values() for line in part]
        return StageModel(self.checkpoint.spec, first_layer, layers, embedding, head, self._resident, lines)

    def _account(self, kind: str, resident: int) -> None:
        if self.on_bytes is not None:
            self.on_bytes(kind, resident)
        self._resident[kind] += resident

    def _layer(self, index: int, option: str) -> DecoderLayer:
        stored, digest = read_stored_layer(self.checkpoint, self.quantised_dir, index, option)
        columns = [len(parts["outlier_columns"]) for parts in stored.operators.values() if "outlier_columns" in parts]
        self._account("weights", resident_layer_bytes(self.checkpoint.spec, option, max(columns, default=OUTLIER_COLUMNS)))
        operators = {name: make_linear(option, parts, stored.bias(name)) for name, parts in stored.operators.items()}
        self._lines["layers"].append(layer_line(index, option, digest))
        layer = DecoderLayer(self.checkpoint.spec, stored.vectors, operators)
        del stored
        _return_freed_memory()
        return layer

    def _embedding(self) -> Embedding:
        spec = self.checkpoint.spec
        self._account("embedding", resident_end_bytes(spec, "embedding", self.end_option))
        tensors = self.checkpoint.embedding()
        self._lines["embedding"].append(end_line("embedding", self.end_option, tensors))
        return Embedding(spec, stored_end("embedding", self.end_option, tensors))

    def _head(self) -> Head:
        spec = self.checkpoint.spec
        self._account("head", resident_end_bytes(spec, "head", self.end_option))
        tensors = self.checkpoint.head()
        self._lines["head"].append(end_line("head", self.end_option, tensors))
        return Head(spec, tensors, make_linear(self.end_option, {"weight": tensors["head.weight"]}))


def read_stored_layer(checkpoint: Checkpoint, quantised_dir: Folders | None, index: int, option: str) -> tuple[LayerTensors, str]:
    """A layer at an option and the digest of its tensors: from its layer file, or from the checkpoint (option 32, or no folder)."""
    if quantised_dir is None or option == _YARDSTICK:
        layer = plain_layer(checkpoint.layer(index), checkpoint.spec.operators(), index, option)
        return layer, layer.content_sha256()
    path = find_layer_file(quantised_dir, index, option)
    return read_layer(path, index, option), read_header(path)["content_sha256"]


def stored_end(end: Literal["embedding", "head"], option: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The table of an end in its option's type; positions and norms stay fp32. LlmpqError for a table that fp16 cannot hold."""
    table = tensors[f"{end}.weight"]
    if option == "16":
        check_half_range(table, f"the {end}: a weight")
        table = table.half()
    return {**tensors, f"{end}.weight": table}


def end_line(end: Literal["embedding", "head"], option: str, tensors: dict[str, Tensor]) -> str:
    """What a digest of a model says about one of its ends, from the checkpoint's tensors."""
    return f"{end} {option} {tensors_sha256(tensors)}"


def _return_freed_memory() -> None:
    """Hand the raw tensors' pages back to the system at once: glibc keeps them, and a stage would grow by half more than it holds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
