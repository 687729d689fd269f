"""GPTQ checkpoints (AutoGPTQ's layout, with GPTQModel's ``dynamic`` for layers of other bits; read by GPTQModel and vLLM).

Of a module with inputs i and outputs o: ``qweight`` int32 [i · bits / 32, o], codes packed along the inputs; ``qzeros`` int32
[groups, o · bits / 32], zero points less one, packed along the outputs; ``scales`` [groups, o]; ``g_idx`` int32 [i], each input's group.
A weight is scale × (code − zero point).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmpq import __version__
from llmpq.export.target import ExportError, Target, grouped_scales, layer_pattern, layers_at, words
from llmpq.model.names import Names
from llmpq.quant.options import WeightOption


class Gptq(Target):
    """Symmetric weights of 2, 3, 4 and 8 bits, per row or in groups."""

    name = "gptq"

    def own_refusal(self, option: WeightOption) -> str | None:
        if option.quantises_activations:
            return "the format holds weights only, not that activations are rounded; choose 8, or --to compressed-tensors"
        return None

    def module(self, option: WeightOption, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        codes, scales = grouped_scales(option, tensors)
        (outputs, inputs), groups = codes.shape, scales.shape[1]
        for what, size in (("inputs", inputs), ("outputs", outputs)):
            if size * option.bits % 32:
                raise ExportError(f"{size} {what} of {option.bits} bits do not fill whole 32-bit words; choose --to compressed-tensors")
        return {
            "qweight": words(codes, option).t().contiguous(),
            "qzeros": words(torch.full((groups, outputs), -1, dtype=torch.int8), option),  # the zero point is the middle code, 0
            "scales": _half_where_exact(scales, codes).t().contiguous(),
            "g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
        }

    def settings(self, names: Names, options: Sequence[WeightOption]) -> dict[str, Any]:
        found = layers_at(options)
        base = max((option for option in found if option.quantised), key=lambda option: len(found[option]))
        others = {
            f"+:{layer_pattern(names, layers)}" if option.quantised else f"-:{layer_pattern(names, layers)}": _widths(option)
            for option, layers in found.items()
            if option is not base
        }
        return {
            "quant_method": self.name,
            **_widths(base),
            "desc_act": False,
            "sym": True,
            "lm_head": False,
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
            **({"dynamic": others} if others else {}),
            "meta": {"quantizer": [f"llmpq:{__version__}"]},
        }


def _widths(option: WeightOption) -> dict[str, int]:
    return {"bits": option.bits, "group_size": option.group_size or -1} if option.quantised else {}


def _half_where_exact(scales: Tensor, codes: Tensor) -> Tensor:
    """Scales [out, groups] as fp16, the format's usual type, or bf16 where fp16 does not hold them; those of zero groups do not matter."""
    used = codes.view(*scales.shape, -1).ne(0).any(-1)
    half = scales.half()
    return half if torch.equal(half.float()[used], scales.float()[used]) else scales
