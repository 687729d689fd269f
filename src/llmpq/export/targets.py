"""Every checkpoint format by its name on the command line."""

from collections.abc import Mapping

from llmpq.export.compressed_tensors import CompressedTensors
from llmpq.export.gptq import Gptq
from llmpq.export.target import ExportError, Target

TARGETS: Mapping[str, Target] = {target.name: target for target in (CompressedTensors(), Gptq())}


def target_named(name: str) -> Target:
    """The target called ``name``; ExportError saying which there are otherwise."""
    if name not in TARGETS:
        raise ExportError(f"unknown checkpoint format '{name}'; known are {', '.join(TARGETS)}")
    return TARGETS[name]
