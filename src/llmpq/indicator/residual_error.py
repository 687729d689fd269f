"""The residual-error indicator: how far a layer's output moves when the layer runs at an option, relative to that output.

For layer i with input h (from the unquantised model) and option b: mean over tokens of |f_b(h) − f(h)|² / |f(h)|², where f is the whole
decoder layer, residual connection included, and f_b the same layer from its quantised file through the kernels that will serve it. So
weights, activation rounding and the kernel's own arithmetic all count, in one unit, and every token counts alike however large its
states are: the norm at the entrance of the next layer divides a token by its own size. Sums of squared output errors (variance,
gptq-loss) are led by the few attention-sink tokens whose states are hundreds of times larger (docs/log.md has the comparison).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmpq.model.checkpoint import Checkpoint
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding
from llmpq.model.positions import Positions
from llmpq.quant.files import LayerTensors, plain_layer
from llmpq.quant.kernels.cpu import make_linear

WINDOWS, TOKENS = 4, 128
"""Calibration windows and tokens of each that are looked at; up to four times as many rank no better (docs/log.md)."""


class ResidualError:
    """Walks through the unquantised model layer by layer, in order, and scores each layer's options.

    ``ids``: calibration windows of token ids [windows][tokens].
    """

    def __init__(self, checkpoint: Checkpoint, ids: Sequence[Sequence[int]]) -> None:
        self._checkpoint, self._spec = checkpoint, checkpoint.spec
        chosen = torch.tensor([list(window[:TOKENS]) for window in ids[:WINDOWS]])
        tokens = chosen.shape[1]
        self._context = Positions(self._spec).prefill(tokens)
        self._hidden = Embedding(self._spec, checkpoint.embedding())(chosen, torch.arange(tokens))
        self._next = 0

    @torch.inference_mode()
    def damages(self, index: int, stored: Mapping[str, LayerTensors]) -> dict[str, float]:
        """Option → mean relative squared error of layer ``index``'s output; layers come in order. ``stored``: option → its tensors."""
        if index != self._next:
            raise ValueError(f"layer {self._next} comes next, not {index}")
        self._next += 1
        plain = plain_layer(self._checkpoint.layer(index), self._spec.operators(), index, "32")
        exact = self._run("32", plain)
        size = exact.square().sum(-1)
        scores = {}
        for option, tensors in stored.items():
            scores[option] = float(((self._run(option, tensors) - exact).square().sum(-1) / size).mean())
        self._hidden = exact
        return scores

    def _run(self, option: str, tensors: LayerTensors) -> Tensor:
        operators = {name: make_linear(option, parts, tensors.bias(name)) for name, parts in tensors.operators.items()}
        return DecoderLayer(self._spec, tensors.vectors, operators).prefill(self._hidden.clone(), self._context)
