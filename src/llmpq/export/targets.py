"""Every checkpoint format by its name on the command line."""

from collections.abc import Mapping

from llmpq.export.compressed_tensors import CompressedTensors
from llmpq.export.gptq import Gptq
from llmpq.export.target import ExportError, Target
from llmpq.export.vllm import Vllm


class Transformers(CompressedTensors):
    """The checkpoint alone, for transformers."""

    name = "transformers"


TARGETS: Mapping[str, Target] = {target.name: target for target in (CompressedTensors(), Gptq(), Transformers(), Vllm())}


def target_named(name: str, platform: str | None = None) -> Target:
    """The target called ``name``, vLLM's for ``platform``; ExportError saying which there are otherwise."""
    if name == Vllm.name and platform:
        return Vllm(platform)
    if name not in TARGETS:
        raise ExportError(f"unknown checkpoint format '{name}'; known are {', '.join(TARGETS)}")
    return TARGETS[name]
