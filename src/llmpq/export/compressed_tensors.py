"""compressed-tensors checkpoints (compressed-tensors 0.20; read by transformers and vLLM): a config group for every option.

Weights alone are ``pack-quantized``: int32 words of codes. ``w8a8`` is ``int-quantized``: int8 codes, and activations that the reader
rounds to 8 bits with a scale per token, where our kernel has 7. A checkpoint of both has the format ``mixed-precision``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmpq.export.target import Target, grouped_scales, layer_pattern, layers_at, words
from llmpq.model.names import Names
from llmpq.quant.options import WeightOption

METHOD = "compressed-tensors"
PACKED, INTEGER, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
_KERNEL_BITS = (4, 8)
_VERSION = "0.20.0"


class CompressedTensors(Target):
    """``<module>.weight_packed``, ``.weight_scale`` and ``.weight_shape``, or ``.weight`` (int8) and ``.weight_scale``."""

    name = METHOD

    def own_refusal(self, option: WeightOption) -> str | None:
        if option.bits not in _KERNEL_BITS:
            return f"no reader of the format has a kernel for {option.bits} bits; choose 4, or --to gptq"
        return None

    def module(self, option: WeightOption, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        codes, scales = grouped_scales(option, tensors)
        if _format(option) == INTEGER:
            return {"weight": codes, "weight_scale": scales}
        return {"weight_packed": words(codes, option), "weight_scale": scales, "weight_shape": torch.tensor(codes.shape)}

    def settings(self, names: Names, options: Sequence[WeightOption]) -> dict[str, Any]:
        leaves = sorted({module.rpartition(".")[2] for modules in names.operators.values() for module in modules})
        groups, plain = [], []
        for option, layers in layers_at(options).items():
            # The modules by name: a pattern that also matched the attention around them would quantise its inputs and its cache.
            pattern = rf"re:{layer_pattern(names, layers)}(?:.*\.)?(?:{'|'.join(leaves)})$"
            if option.quantised:
                groups.append(_group(option, pattern))
            else:
                plain.append(pattern)
        formats = {group["format"] for group in groups}
        return {
            "quant_method": METHOD,
            "format": formats.pop() if len(formats) == 1 else MIXED,
            "quantization_status": "compressed",
            "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
            "ignore": [names.ends["head"], *plain],
            "kv_cache_scheme": None,
            "version": _VERSION,
        }


def _format(option: WeightOption) -> str:
    return INTEGER if option.quantises_activations else PACKED


def _group(option: WeightOption, target: str) -> dict[str, Any]:
    shared = {"strategy": "group", "group_size": option.group_size} if option.group_size else {"strategy": "channel", "group_size": None}
    tokens = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": [target],
        "weights": {"num_bits": option.bits, "type": "int", "symmetric": True, "dynamic": False, **shared},
        "input_activations": tokens if option.quantises_activations else None,
        "output_activations": None,
        "format": _format(option),
    }
