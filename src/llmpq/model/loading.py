"""Building a StageModel: from the files of quantise, or straight from the checkpoint for options that need no calibration."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

from llmpq.errors import ArtifactError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding, Head
from llmpq.model.stage import StageModel
from llmpq.quant.bytes import End, resident_end_bytes, resident_layer_bytes, shared_end_bytes
from llmpq.quant.files import LayerTensors, plain_layer, read_layer
from llmpq.quant.kernels.cpu import Int8Linear, make_linear
from llmpq.quant.kernels.table import make_table
from llmpq.quant.layer_index import Folders, find_layer_file, layer_line, read_header
from llmpq.quant.options import OUTLIER_COLUMNS, LayerOption, layer_option, weight_option

_YARDSTICK = "32"


class StageLoader:
    """Loads a stage of one model; ``on_bytes(kind, n)`` is told resident bytes before each packing and may refuse by raising.

    Layers at option 32 come from the checkpoint, and so does option 16 when there is no ``quantised_dir``, and always that of the ends;
    all others from their files. One layer at a time is read, packed and its raw tensors freed, so the peak is the stage plus one layer.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        quantised_dir: Folders | None = None,
        on_bytes: Callable[[str, int], None] | None = None,
    ) -> None:
        self.checkpoint = Checkpoint(checkpoint_dir)
        self.quantised_dir, self.on_bytes = quantised_dir, on_bytes
        self._resident = {"weights": 0, "embedding": 0, "head": 0}
        self._lines: dict[str, list[str]] = {}

    def load(self, first_layer: int, options: Sequence[str], embedding: str | None = None, head: str | None = None) -> StageModel:
        """Layers first_layer … first_layer + len(options) − 1, one option each; ``embedding`` and ``head`` at their options, or None."""
        chosen = [layer_option(option) for option in options]
        self._resident, self._lines = dict.fromkeys(self._resident, 0), {"embedding": [], "layers": [], "head": []}
        # The ends first: reading them takes the most beside what is kept, and so far nothing else is.
        front = None if embedding is None else self._embedding(embedding)
        back = None if head is None else self._head(head, front if head == embedding else None)
        _return_freed_memory()
        layers = [self._layer(first_layer + offset, option) for offset, option in enumerate(chosen)]
        lines = [line for part in self._lines.values() for line in part]
        return StageModel(self.checkpoint.spec, first_layer, layers, front, back, self._resident, lines)

    def _account(self, kind: str, resident: int) -> None:
        if self.on_bytes is not None:
            self.on_bytes(kind, resident)
        self._resident[kind] += resident

    def _layer(self, index: int, chosen: LayerOption) -> DecoderLayer:
        option = chosen.weights.name
        stored, digest = read_stored_layer(self.checkpoint, self.quantised_dir, index, option)
        columns = [len(parts["outlier_columns"]) for parts in stored.operators.values() if "outlier_columns" in parts]
        self._account("weights", resident_layer_bytes(self.checkpoint.spec, option, max(columns, default=OUTLIER_COLUMNS)))
        operators = {name: make_linear(option, parts, stored.bias(name)) for name, parts in stored.operators.items()}
        self._lines["layers"].append(layer_line(index, option, digest))
        layer = DecoderLayer(self.checkpoint.spec, stored.vectors, operators, chosen.kv)
        del stored
        _return_freed_memory()
        return layer

    def _embedding(self, option: str) -> Embedding:
        spec = self.checkpoint.spec
        size = resident_end_bytes(spec, "embedding", option)
        stored = self._read_end("embedding", option)
        self._account("embedding", size)
        return Embedding(spec, stored.vectors, make_table(option, stored.operators["embedding"]))

    def _head(self, option: str, embedding: Embedding | None) -> Head:
        """The head; ``embedding`` is that of the same option on this stage, whose table a tied head takes where its kernel can."""
        spec = self.checkpoint.spec
        size, shared = resident_end_bytes(spec, "head", option), 0 if embedding is None else shared_end_bytes(spec, option)
        stored = self._read_end("head", option)
        self._account("head", size - shared)
        operator = self._tied(embedding, stored) if embedding is not None and shared else make_linear(option, stored.operators["head"])
        return Head(spec, stored.vectors, operator)

    def _tied(self, embedding: Embedding, head: LayerTensors) -> Int8Linear:
        table = embedding.table
        if not isinstance(table, Int8Linear) or not table.holds(head.operators["head"]):
            raise ArtifactError(
                f"{self.quantised_dir}: the model ties embedding and head, but their files at option '{head.option}' hold other codes; "
                "quantise the ends again"
            )
        return table

    def _read_end(self, end: End, option: str) -> LayerTensors:
        stored = read_stored_end(self.checkpoint, self.quantised_dir, end, option)
        self._lines[end].append(layer_line(end, option, stored.content_sha256()))
        return stored


def read_stored_layer(checkpoint: Checkpoint, quantised_dir: Folders | None, index: int, option: str) -> tuple[LayerTensors, str]:
    """A layer at an option and the digest of its tensors: from its layer file, or from the checkpoint (option 32, or no folder)."""
    if quantised_dir is None or option == _YARDSTICK:
        layer = plain_layer(checkpoint.layer(index), checkpoint.spec.operators(), index, option)
        return layer, layer.content_sha256()
    path = find_layer_file(quantised_dir, index, option)
    return read_layer(path, index, option), read_header(path)["content_sha256"]


def read_stored_end(checkpoint: Checkpoint, quantised_dir: Folders | None, end: End, option: str) -> LayerTensors:
    """An end at an option: from its file, or from the checkpoint where the option is not quantised (or there is no folder)."""
    if quantised_dir is None or not weight_option(option).quantised:
        return plain_layer(checkpoint.end(end), [end], end, option)
    return read_layer(find_layer_file(quantised_dir, end, option), end, option)


def _return_freed_memory() -> None:
    """Hand the raw tensors' pages back to the system at once: glibc keeps them, and a stage would grow by half more than it holds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
