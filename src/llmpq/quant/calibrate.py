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
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding
from llmpq.model.positions import Positions
from llmpq.model.spec import ModelSpec
from llmpq.quant.calibration import CalibrationWriter, InputStatistics
from llmpq.quant.progress import Progress

SAMPLED_ROWS = 256
"""Input rows kept per operator, for damage that has to be measured through a kernel (activation rounding)."""

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
    info = {"settings": dict(settings), "tokens": windows * tokens, "windows": windows, "ids_sha256": _ids_digest(ids)}
    progress = Progress("calibrate", spec.layers)
    at_once = max(1, _TOKENS_AT_ONCE // tokens)
    with atomic_path(out_file) as temporary, CalibrationWriter(temporary, spec.layers, inputs, len(chosen), info) as writer:
        for index in range(spec.layers):
            recorders = _recorders(spec, checkpoint.layer(index), chosen)
            layer = DecoderLayer(spec, recorders.vectors, recorders.operators)
            parts = [layer.prefill(part, context) for part in hidden.split(at_once)]
            hidden = torch.cat(parts)
            writer.add(index, {name: recorder.statistics() for name, recorder in recorders.operators.items()})
            progress.step("layers")


class _Recorder:
    """An operator in fp32 that sums up the statistics of the inputs it sees."""

    def __init__(self, weight: Tensor, bias: Tensor | None, chosen: Tensor) -> None:
        self._weight, self._bias, self._chosen, self._seen = weight, bias, chosen, 0
        columns = weight.shape[1]
        self._gram, self._sum = torch.zeros(columns, columns), torch.zeros(columns, dtype=torch.float64)
        self._max_abs, self._rows = torch.zeros(columns), torch.empty(len(chosen), columns)

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        _add_gram(self._gram, flat)
        self._sum += flat.sum(0, dtype=torch.float64)
        torch.maximum(self._max_abs, flat.abs().amax(0), out=self._max_abs)
        here = (self._chosen >= self._seen) & (self._chosen < self._seen + flat.shape[0])
        self._rows[here] = flat[self._chosen[here] - self._seen]
        self._seen += flat.shape[0]
        return F.linear(x, self._weight, self._bias)

    def statistics(self) -> InputStatistics:
        hessian = self._gram / self._seen
        return InputStatistics(hessian, (self._sum / self._seen).float(), hessian.diagonal().clone(), self._max_abs, self._rows)


def _add_gram(gram: Tensor, x: Tensor) -> None:
    """Add XᵀX to the upper triangle of ``gram``, block by block: the lower blocks would only repeat it."""
    for first in range(0, x.shape[1], _GRAM_BLOCK):
        rows = x[:, first : first + _GRAM_BLOCK]
        gram[first : first + _GRAM_BLOCK, first:].addmm_(rows.t(), x[:, first:])


class _Recorders:
    def __init__(self, operators: dict[str, _Recorder], vectors: dict[str, Tensor]) -> None:
        self.operators, self.vectors = operators, vectors


def _recorders(spec: ModelSpec, tensors: Mapping[str, Tensor], chosen: Tensor) -> _Recorders:
    operators = {name: _Recorder(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), chosen) for name in spec.operators()}
    return _Recorders(operators, dict(tensors))


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
