"""What every indicator is given, and what it answers: one interface, one file a method, listed in ``methods``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from llmpq.model.checkpoint import Checkpoint
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding
from llmpq.model.positions import Positions, PrefillContext
from llmpq.quant.calibration import Calibration
from llmpq.quant.files import LayerTensors, plain_layer
from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.options import LayerOption, WeightOption, layer_option

WHOLE_LAYER = "layer"
"""Stands in the place of an operator where a method scores a layer as a whole."""

Damages = dict[str, dict[str, float]]
"""Option → operator (or WHOLE_LAYER) → damage ≥ 0 in the method's own unit."""


@dataclass(frozen=True)
class Source:
    """What a method may look at: the unquantised model, the calibration file, and the settings of the configuration."""

    checkpoint: Checkpoint
    calibration: Calibration
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class QuantisedLayer:
    """One layer at its quantised options: tensors of its files, and the loss tr(ΔW H ΔWᵀ) of every operator as quantise recorded it.

    ``cached`` has the options whose keys and values are kept at fewer than 16 bits, which only a method that runs the layer can judge.
    """

    index: int
    stored: Mapping[WeightOption, LayerTensors]
    losses: Mapping[WeightOption, Mapping[str, float]]
    cached: Mapping[LayerOption, LayerTensors] = field(default_factory=dict)

    def to_run(self) -> Iterator[tuple[LayerOption, LayerTensors]]:
        """Every option with the tensors that it runs with."""
        yield from ((layer_option(option.name), tensors) for option, tensors in self.stored.items())
        yield from self.cached.items()


class Indicator(Protocol):
    """One method at work: asked once for every layer, in order from 0."""

    def damages(self, layer: QuantisedLayer) -> Damages:
        """Damage of each of the layer's options."""
        ...


class Walk:
    """The hidden states of some calibration windows on their way through the unquantised model, a layer at a time.

    ``windows`` windows of ``tokens`` tokens each, from the front of the calibration's own.
    """

    def __init__(self, source: Source, windows: int, tokens: int) -> None:
        self.checkpoint, self.spec = source.checkpoint, source.checkpoint.spec
        self.ids = torch.tensor([list(window[:tokens]) for window in source.calibration.ids[:windows]])
        tokens = self.ids.shape[1]
        self.context: PrefillContext = Positions(self.spec).prefill(tokens)
        self.hidden: Tensor = Embedding(self.spec, self.checkpoint.embedding())(self.ids, torch.arange(tokens))
        self.next = 0

    def expect(self, index: int) -> None:
        """Refuse any layer but the next."""
        if index != self.next:
            raise ValueError(f"layer {self.next} comes next, not {index}")

    def plain(self, index: int) -> DecoderLayer:
        """Layer ``index`` of the unquantised model, fp32."""
        return packed(layer_option("32"), plain_layer(self.checkpoint.layer(index), self.spec.operators(), index, "32"), self)

    def run(self, option: LayerOption, tensors: LayerTensors) -> Tensor:
        """The next layer's output [windows, tokens, hidden] when it runs at ``option`` through the kernels that serve it."""
        return packed(option, tensors, self).prefill(self.hidden.clone(), self.context)

    def step(self, output: Tensor) -> None:
        """On to the next layer, whose input is ``output``."""
        self.hidden, self.next = output, self.next + 1


def packed(option: LayerOption, tensors: LayerTensors, walk: Walk) -> DecoderLayer:
    """A decoder layer from its stored tensors."""
    operators = {name: make_linear(option.weights, parts, tensors.bias(name)) for name, parts in tensors.operators.items()}
    return DecoderLayer(walk.spec, tensors.vectors, operators, option.kv)
