"""Calibration: run the unquantised model over some text, a layer at a time, and keep the statistics of every operator's inputs."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmpq.artifacts import atomic_path
from llmpq.errors import ConfigError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.decoder import DecoderLayer, KeysValues
from llmpq.model.ends import Embedding
from llmpq.model.positions import Positions, PrefillContext
from llmpq.model.spec import ModelSpec
from llmpq.progress import Progress
from llmpq.quant.calibration import CalibrationWriter, InputStatistics

SAMPLED_ROWS = 256
"""Input rows kept per operator, for damage that has to be measured through a kernel (activation rounding)."""

_ATTENDED = "qkv"
"""The operator whose tokens count in its Hessian by (1 + attention received) / 2. Half of all attention goes to the first token of a
sequence, one token in 512: with equal weights GPTQ leaves an error in its value that it shares with all the others (SmolLM2, q, k and v
at 4 bit: KL divergence 0.26, round to nearest 0.20, with weights 0.04). For the other operators weights of this kind did not help."""

_TOKENS_AT_ONCE = 2048
_GRAM_BLOCK = 512


@torch.inference_mode()
def calibrate(
    checkpoint_dir: str | Path, token_windows: Sequence[Sequence[int]], out_file: str | Path, settings: Mapping[str, Any]
) -> None:
    """Write ``out_file`` (see quant/calibration.py) from equally long windows of token ids.

    The model runs in fp32; only one decoder layer is in memory at a time, beside the hidden states of all windows. ``settings`` go
    into the metadata; its ``seed`` (0) chooses which input rows are kept. The same input gives the same file.
    Raises ConfigError for windows that are empty, unequal or beyond the vocabulary, and the checkpoint's own errors.
    """
    checkpoint = Checkpoint(checkpoint_dir)
    spec = checkpoint.spec
    ids = _checked(token_windows, spec)
    windows, tokens = ids.shape
    positions = Positions(spec)
    context = positions.prefill(tokens)
    hidden = Embedding(spec, checkpoint.embedding())(ids, torch.arange(tokens))
    chosen = _sampled(windows * tokens, int(settings.get("seed", 0)))
    inputs = {name: shape[1] for name, shape in spec.operators().items()}
    info = {"settings": dict(settings), "tokens": windows * tokens, "windows": windows, "ids": ids.tolist(), "ids_sha256": _ids_digest(ids)}
    progress = Progress("calibrate", spec.layers)
    at_once = max(1, _TOKENS_AT_ONCE // tokens)
    with atomic_path(out_file) as temporary, CalibrationWriter(temporary, spec.layers, inputs, len(chosen), info) as writer:
        for index in range(spec.layers):
            tensors = checkpoint.layer(index)
            recorders = {name: _Recorder(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), chosen) for name in inputs}
            layer, parts = _WatchedLayer(spec, tensors, recorders), []
            for part in hidden.split(at_once):
                parts.append(layer.prefill(part, context))
                for name, recorder in recorders.items():
                    recorder.take((1.0 + layer.received) / 2.0 if name == _ATTENDED else None)
            hidden = torch.cat(parts)
            writer.add(index, {name: recorder.statistics() for name, recorder in recorders.items()})
            progress.step("layers")


class _WatchedLayer(DecoderLayer):
    """A decoder layer that notes, of its last prefill, how much attention every token received."""

    received: Tensor
    """[rows · tokens]: attention weights summed over the queries, mean over heads; 1 on average, hundreds for an attention sink."""

    def _attend_prompt(self, x: Tensor, context: PrefillContext, cache: KeysValues | None) -> Tensor:
        spec = self.spec
        queries, keys, values = (part.transpose(1, 2) for part in self._heads(x, context.rotary))
        grouped = queries.reshape(len(x), spec.kv_heads, spec.group * context.tokens, spec.head_dim)
        scores = (grouped @ keys.transpose(2, 3)).view(len(x), spec.heads, context.tokens, context.tokens) / spec.head_dim**0.5
        causal = torch.full((context.tokens, context.tokens), -torch.inf).triu(1) if context.bias is None else context.bias
        weights = scores.add_(causal).softmax(-1)
        self.received = weights.sum(2).mean(1).flatten()
        mixed = (weights.view(*grouped.shape[:3], context.tokens) @ values).view(queries.shape)
        return self.o(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class _Recorder:
    """An operator in fp32 that sums up the statistics of the inputs it sees, once ``take`` says how much each token counts."""

    def __init__(self, weight: Tensor, bias: Tensor | None, chosen: Tensor) -> None:
        self._weight, self._bias, self._chosen, self._seen = weight, bias, chosen, 0
        columns = weight.shape[1]
        self._gram, self._sums = torch.zeros(columns, columns), torch.zeros(2, columns, dtype=torch.float64)
        self._max_abs, self._rows, self._input = torch.zeros(columns), torch.empty(len(chosen), columns), torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        self._input = x.reshape(-1, x.shape[-1])
        return F.linear(x, self._weight, self._bias)

    def take(self, weights: Tensor | None) -> None:
        """Add the last input; ``weights`` [tokens] are of the Hessian only (None: all tokens count alike)."""
        x = self._input
        _add_gram(self._gram, x if weights is None else x * weights.sqrt().unsqueeze(1))
        self._sums += torch.stack([x.sum(0, dtype=torch.float64), x.square().sum(0, dtype=torch.float64)])
        torch.maximum(self._max_abs, x.abs().amax(0), out=self._max_abs)
        here = (self._chosen >= self._seen) & (self._chosen < self._seen + len(x))
        self._rows[here] = x[self._chosen[here] - self._seen]
        self._seen += len(x)

    def statistics(self) -> InputStatistics:
        mean, second_moment = (self._sums / self._seen).float()
        return InputStatistics(self._gram / self._seen, mean, second_moment, self._max_abs, self._rows)


def _add_gram(gram: Tensor, x: Tensor) -> None:
    """Add XᵀX to the upper triangle of ``gram``, block by block: the lower blocks would only repeat it."""
    for first in range(0, x.shape[1], _GRAM_BLOCK):
        rows = x[:, first : first + _GRAM_BLOCK]
        gram[first : first + _GRAM_BLOCK, first:].addmm_(rows.t(), x[:, first:])


def _checked(token_windows: Sequence[Sequence[int]], spec: ModelSpec) -> Tensor:
    lengths = {len(window) for window in token_windows}
    if len(lengths) != 1 or 0 in lengths:
        raise ConfigError(f"calibration needs equally long windows of tokens; their lengths are {sorted(lengths) or 'none'}")
    spec.check_context(lengths.pop())
    ids = torch.tensor([list(window) for window in token_windows], dtype=torch.long)
    if int(ids.min()) < 0 or int(ids.max()) >= spec.vocab:
        raise ConfigError(
            f"calibration tokens must lie in 0 … {spec.vocab - 1} (the vocabulary), found {int(ids.min())} … {int(ids.max())}"
        )
    return ids


def _sampled(tokens: int, seed: int) -> Tensor:
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    return order[: min(SAMPLED_ROWS, tokens)].sort().values


def _ids_digest(ids: Tensor) -> str:
    flat = ids.flatten().tolist()
    return hashlib.sha256(struct.pack(f"<{len(flat)}q", *flat)).hexdigest()
