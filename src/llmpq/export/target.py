"""What every checkpoint format is: it takes an option or says why not, writes a module's tensors, and describes the whole.

Nothing is quantised again: codes and scales of the layer files are laid out as the format wants them.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.model.names import Names
from llmpq.quant.dequantise import signed_codes
from llmpq.quant.options import WeightOption, weight_option
from llmpq.quant.packing import pack

_WORD_BYTES = 4


class ExportError(LlmpqError):
    """A plan that a checkpoint format cannot express, or a place that must not be written."""


class Target(ABC):
    """A checkpoint format. ``name`` is what --to calls it."""

    name: str

    def refusal(self, option: WeightOption) -> str | None:
        """Why ``option`` cannot be written and what to choose instead, as the end of a sentence; None where it can."""
        if option.package:
            return f"its weights are in a format of {option.package}; choose {option.bits}"
        if option.outliers:
            return "its outlier columns stay in fp32 beside the codes, which no checkpoint format holds; choose 8"
        if not option.symmetric:
            symmetric = weight_option(option.name.replace("a", "", 1))
            further = self.refusal(symmetric)
            advice = f"choose {symmetric.name}" if further is None else further.rpartition("; ")[2]
            return f"its offsets are no multiples of its scales, which is all that the format's zero points can be; {advice}"
        return self.own_refusal(option) if option.quantised else None

    @abstractmethod
    def own_refusal(self, option: WeightOption) -> str | None:
        """The same for a quantised, symmetric option without outliers."""

    @abstractmethod
    def module(self, option: WeightOption, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of one module by what follows its name and a dot; ``tensors`` are those of a layer file: codes and scales of a
        quantised option. ExportError where the module's shape does not fit the format."""

    @abstractmethod
    def settings(self, names: Names, options: Sequence[WeightOption]) -> dict[str, Any]:
        """``quantization_config`` of config.json for the layers' options; at least one is quantised."""


def layers_at(options: Sequence[WeightOption]) -> dict[WeightOption, list[int]]:
    """The layers of every option, options in the order of their first layer."""
    found: dict[WeightOption, list[int]] = {}
    for layer, option in enumerate(options):
        found.setdefault(option, []).append(layer)
    return found


def layer_pattern(names: Names, layers: Iterable[int]) -> str:
    """A regular expression for everything in these layers, from the start of a module's name; a fused runtime's names match as well."""
    before, after = names.layer.split("{}")
    return rf".*\b{re.escape(before)}(?:{'|'.join(map(str, layers))}){re.escape(after)}"


def words(codes: Tensor, option: WeightOption) -> Tensor:
    """int8 codes [rows, columns] → int32 [rows, ⌈columns · bits / 32⌉]: code + 2^(bits − 1) as one stream of bits a row, first in the
    lowest bits; the last word is filled with zeros."""
    unsigned = codes.int() + 2 ** (option.bits - 1)
    stream = unsigned.to(torch.uint8) if option.bits == 8 else pack(unsigned, option.bits)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % _WORD_BYTES))
    return stream.contiguous().view(torch.int32)


def grouped_scales(option: WeightOption, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Codes int8 [out, in], and scales bf16 [out, groups] (one group where a row has one scale)."""
    codes = signed_codes(option, tensors)
    return codes, tensors["scales"].reshape(codes.shape[0], -1)
