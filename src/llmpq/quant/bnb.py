"""The package bitsandbytes as a quantiser: its own rounding for the options that its kernels serve, without calibration.

``bnb-int8`` is LLM.int8 (Dettmers et al., 2022): an absolute maximum per row. ``bnb-nf4`` is NF4 (QLoRA, Dettmers et al., 2023): codes
are places in a table of 16 levels, times the absolute maximum of a block of 64.
"""

import functools
import logging
import sys
from types import ModuleType

import torch
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.quant.options import WeightOption
from llmpq.quant.packing import pack

INT8_LEVELS = 127
"""A code of LLM.int8 times its row's absolute maximum is so many times the weight."""


@functools.cache
def bitsandbytes() -> ModuleType:
    """The package, imported when first needed: that takes seconds. LlmpqError where it is not there."""
    # On a processor with bf16 instructions its import asks a package `kernels`, if there is one, for a kernel from a hub: it must not.
    hub = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)  # of which it warns
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise LlmpqError(
            f"options bnb-int8 and bnb-nf4 need the package bitsandbytes (requirements.txt has its version): {error}"
        ) from None
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if hub is not None:
            sys.modules["kernels"] = hub
    return bitsandbytes


def rounded(option: WeightOption, weight: Tensor) -> dict[str, Tensor]:
    """``weight`` fp32 [out, in] as a layer file holds it: ``codes`` and ``scales``, weight = code (or its level) × scale.

    ``bnb-int8``: codes int8 [out, in], scales fp32 [out]. ``bnb-nf4``: places in the table, packed as all codes of 4 bits are, and scales
    bf16 [out, in / 64], the type that the kernel multiplies with. Raises LlmpqError where rows are not whole blocks.
    """
    functional = bitsandbytes().functional
    out_features, in_features = weight.shape
    if option.bits == 8:
        codes, largest, _ = functional.int8_vectorwise_quant(weight)
        return {"codes": codes, "scales": largest.float() / INT8_LEVELS}
    if in_features % option.group_size:
        raise LlmpqError(f"{in_features} inputs are no multiple of the block of {option.group_size}")
    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=option.group_size, quant_type="nf4")
    places = torch.stack([packed >> 4, packed & 15], dim=-1).view(out_features, in_features)
    return {"codes": pack(places, 4), "scales": state.absmax.view(out_features, -1).to(torch.bfloat16)}


@functools.cache
def nf4_levels() -> Tensor:
    """The 16 levels of NF4, ascending, fp32, from -1 to 1."""
    return bitsandbytes().functional.get_4bit_type("nf4", device="cpu").float()


@functools.cache
def nf4_step() -> float:
    """Root mean square of the distances between neighbouring levels, all equally likely: that is how NF4 chose them."""
    return float(nf4_levels().diff().square().mean().sqrt())
