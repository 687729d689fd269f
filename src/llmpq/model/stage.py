"""A pipeline stage's share of the model: some decoder layers, and the embedding or the head where the stage has them.

Serving, profiling and evaluation all run this one class, so that what is timed and scored is what serves.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmpq.model.cache import StageCache
from llmpq.model.config_file import ModelError
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding, Head
from llmpq.model.positions import Positions
from llmpq.model.spec import ModelSpec
from llmpq.quant.layer_index import Folders, combined_digest


class StageModel:
    """Decoder layers first_layer … first_layer + len(layers) − 1 with optional ends; build it with load()."""

    def __init__(
        self,
        spec: ModelSpec,
        first_layer: int,
        layers: Sequence[DecoderLayer],
        embedding: Embedding | None,
        head: Head | None,
        resident_bytes: Mapping[str, int],
        digest_lines: Sequence[str],
    ) -> None:
        self.spec, self.first_layer, self.layers = spec, first_layer, list(layers)
        self.embedding, self.head = embedding, head
        self.resident_bytes = dict(resident_bytes)  # weights, embedding, head
        self.digest_lines = list(digest_lines)  # one for each layer and end: what it is, its option, the digest of its weights
        self._positions = Positions(spec)

    @property
    def weights_digest(self) -> str:
        """Digest of this stage's layers and ends; over the ``digest_lines`` of all stages, in order, it is that of the whole model."""
        return combined_digest(self.digest_lines)

    @classmethod
    def load(
        cls,
        checkpoint_dir: str | Path,
        quantised_dir: Folders | None,
        *,
        first_layer: int,
        options: Sequence[str],
        embedding: str | None = None,
        head: str | None = None,
        on_bytes: Callable[[str, int], None] | None = None,
    ) -> "StageModel":
        """Read and pack this stage's own layers only, one at a time; see llmpq.model.loading.StageLoader.

        ``options`` are the layers' ("4", or "4/kv8" with an 8-bit cache), ``embedding`` and ``head`` those of the ends, None for an end
        that the stage does not have. ``quantised_dir`` is a folder of layer groups and ends, or these themselves.
        """
        from llmpq.model.loading import StageLoader

        return StageLoader(checkpoint_dir, quantised_dir, on_bytes).load(first_layer, options, embedding, head)

    def new_cache(self, slots: int, capacity: int) -> StageCache:
        """Static KV tensors for ``slots`` sequences of up to ``capacity`` tokens (prompt and output) in this stage's layers."""
        self.spec.check_context(capacity)
        self._positions.reserve(capacity)
        return StageCache(self.spec, [layer.kv_format for layer in self.layers], slots, capacity)

    @torch.inference_mode()
    def prefill(self, inputs: Tensor, cache: StageCache, rows: slice | Tensor, lengths: Tensor) -> Tensor:
        """Run the prompts of a micro-batch and fill its ``rows`` (a contiguous slice of slots, or their numbers [b]) of the cache.

        inputs: ids [b, s] with an embedding, else hidden [b, s, h]; right-padded, ``lengths`` [b] the real tokens (1 … s).
        Returns hidden [b, s, h], or with a head logits [b, vocab] of each row's last real token.
        """
        hidden = self._prompt(inputs, cache, rows)
        if self.head is None:
            return hidden
        return self.head(hidden[torch.arange(hidden.shape[0]), lengths - 1])

    @torch.inference_mode()
    def decode(self, inputs: Tensor, cache: StageCache, rows: slice, positions: Tensor) -> Tensor:
        """One new token per row of ``rows``.

        inputs: ids [b] with an embedding, else hidden [b, h]; ``positions`` [b] (int64) is the cache position each token takes.
        Returns hidden [b, h], or with a head logits [b, vocab].
        """
        context = self._positions.decode(positions)
        if context.length > cache.capacity:
            raise ModelError(f"decoding position {context.length - 1}, but the KV cache holds {cache.capacity} tokens per sequence")
        hidden = inputs if self.embedding is None else self.embedding(inputs, positions)
        for layer, stored in zip(self.layers, cache.views(rows), strict=True):
            hidden = layer.decode(hidden, context, stored)
        return hidden if self.head is None else self.head(hidden)

    @torch.inference_mode()
    def hidden(self, inputs: Tensor) -> Tensor:
        """All-token output of this stage's layers, no cache: ids [b, s] (or hidden [b, s, h]) → [b, s, h], the head not applied."""
        self.spec.check_context(inputs.shape[1])
        return self._prompt(inputs, None, slice(0, inputs.shape[0]))

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """All-token logits [b, s, vocab] of ids [b, s], through the serving kernels; needs embedding, every layer and the head."""
        if self.embedding is None or self.head is None or len(self.layers) != self.spec.layers:
            raise ModelError("logits need a stage that holds the embedding, all layers and the head")
        return self.predict(self.hidden(ids))

    @torch.inference_mode()
    def predict(self, hidden: Tensor) -> Tensor:
        """Logits [b, s, vocab] of the last layer's output [b, s, h]; needs the head."""
        if self.head is None:
            raise ModelError("logits need a stage that holds the head")
        return self.head(hidden)

    def _prompt(self, inputs: Tensor, cache: StageCache | None, rows: slice | Tensor) -> Tensor:
        tokens = inputs.shape[1]
        if cache is not None and tokens > cache.capacity:
            raise ModelError(f"a prompt of {tokens} tokens does not fit a KV cache of {cache.capacity} tokens per sequence")
        slots, rows = (None, rows) if isinstance(rows, slice) else (rows, slice(None))
        context = self._positions.prefill(tokens, slots)
        hidden = inputs if self.embedding is None else self.embedding(inputs, torch.arange(tokens))
        stored = [None] * len(self.layers) if cache is None else cache.views(rows)
        for layer, own in zip(self.layers, stored, strict=True):
            hidden = layer.prefill(hidden, context, own)
        return hidden
