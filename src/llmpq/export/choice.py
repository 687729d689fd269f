"""Which options a planner may choose for a backend: what an export to it can say, and why not the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmpq.errors import ConfigError
from llmpq.export.vllm import Vllm
from llmpq.quant.options import DEFAULT_KV, weight_option

NATIVE = "native"
_PLAIN = _END = "16"


@dataclass(frozen=True)
class Choice:
    """What is left of the options of layers and ends and of the caches' kinds; ``notes``: what is not, and why."""

    options: list[str]
    end_options: list[str]
    kv_options: list[str]
    notes: list[str]


def choice_for(backend: str, options: Sequence[str], end_options: Sequence[str], kv_options: Sequence[str]) -> Choice:
    """Everything for ``native``; for ``vllm`` what it has kernels for on the CPU that compute in fp32.

    Raises ConfigError naming the key where nothing is left of one of them.
    """
    if backend == NATIVE:
        return Choice(list(options), list(end_options), list(kv_options), [])
    refused = {name: why for name in options if (why := _refusal(name)) is not None}
    ends = {name: "readers keep embedding and head alike and unquantised" for name in end_options if name != _END}
    caches = {name: "a checkpoint cannot say it of single layers" for name in kv_options if name != DEFAULT_KV}
    choice = Choice(
        _kept("quantizer.options", options, refused, backend),
        _kept("model.end_options", end_options, ends, backend),
        _kept("model.kv_options", kv_options, caches, backend),
        [],
    )
    groups = {"options": refused, "of embedding and head": ends, "of caches": caches}
    choice.notes.extend(f"not offered for {backend}, {group}: {_listed(left_out)}" for group, left_out in groups.items() if left_out)
    return choice


def _refusal(name: str) -> str | None:
    option = weight_option(name)
    if not option.quantised and name != _PLAIN:
        return f"vLLM keeps every unquantised layer in the type that it computes in, fp32 here; choose {_PLAIN}"
    if option.bits == 4 and option.symmetric:
        return "its kernel computes in bf16 alone, and vLLM in one type for all layers: fp32, which the others' times are of"
    return Vllm("cpu").refusal(option)


def _kept(key: str, names: Sequence[str], refused: Mapping[str, str], backend: str) -> list[str]:
    found = [name for name in names if name not in refused]
    if not found:
        raise ConfigError(f"key '{key}': nothing is left of it for {backend}: {_listed(refused)}")
    return found


def _listed(refused: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in refused.items())
