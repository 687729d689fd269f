"""``--to vllm``: a compressed-tensors checkpoint beside the settings with which stock vLLM (0.32) serves a plan.

Of a plan vLLM takes the order of the devices, the cut, the options of the layers, how many requests are resident, and how many prompt
tokens make a call. Two things it does its own way. ``max_num_seqs`` counts the sequences of the whole pipeline, and whatever of them is not
under way makes the next call: with n stages a decode call has about 1/n of them, whatever the plan's micro-batch. And prompts are cut into
chunks of at most ``max_num_batched_tokens``, filled up with the decode steps that are due, so prefill and decode mix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmpq.export.compressed_tensors import CompressedTensors
from llmpq.export.target import ExportError
from llmpq.model.spec import ModelSpec
from llmpq.quant.options import WeightOption, weight_option
from llmpq.quant.vllm_bytes import cache_bytes
from llmpq.schedule.vllm import call_tokens

PLATFORMS = ("cuda", "cpu")
LAUNCHER, SETTINGS = "serve.sh", "vllm.yaml"


class Vllm(CompressedTensors):
    """compressed-tensors with what vLLM has kernels for on ``platform``."""

    name = "vllm"

    def __init__(self, platform: str = "cuda") -> None:
        if platform not in PLATFORMS:
            raise ExportError(f"--platform '{platform}' is unknown; known are {', '.join(PLATFORMS)}")
        self.platform = platform

    def own_refusal(self, option: WeightOption) -> str | None:
        if self.platform == "cpu" and option.bits == 8 and not option.quantises_activations:
            return "vLLM has no kernel on the CPU for 8-bit weights beside unrounded activations; choose w8a8"
        return super().own_refusal(option)


@dataclass(frozen=True)
class Launch:
    """``engine``: arguments of vLLM's engine by their names; ``partition``: layers of each stage; ``devices``: theirs in the plan."""

    engine: dict[str, Any]
    partition: list[int]
    devices: list[str]
    platform: str

    def body(self) -> dict[str, Any]:
        """For export.json."""
        return {"platform": self.platform, "devices": self.devices, "partition": self.partition, "engine": self.engine}

    def files(self) -> dict[str, str]:
        """Name → text of what lies beside the checkpoint."""
        return {SETTINGS: self._settings(), LAUNCHER: self._launcher()}

    def _settings(self) -> str:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in self.engine.items()]
        return "# Read by `vllm serve --config`; written by llmpq export.\n" + "\n".join(lines) + "\n"

    def _launcher(self) -> str:
        named = zip(self.devices, self.partition, strict=True)
        stages = [f"#   {number}: {device}, {layers} layers" for number, (device, layers) in enumerate(named)]
        server = 'vllm serve "$here"'
        if self.platform == "cpu":
            # vLLM's wheel for processors has another name than `vllm`, by which its command looks for its own version
            server = '"${PYTHON:-python3}" -m vllm.entrypoints.openai.api_server --model "$here"'
            cores = "|".join(map(str, range(len(self.partition))))
            places = f'export VLLM_CPU_OMP_THREADS_BIND="${{CORES:-{cores}}}"  # cores of each stage, in the order above'
        else:
            count = len(self.partition) * self.engine["tensor_parallel_size"]
            gpus = ",".join(map(str, range(count)))
            places = f'export CUDA_VISIBLE_DEVICES="${{GPUS:-{gpus}}}"  # the GPUs of each stage, in the order above'
        return "\n".join([
            "#!/bin/sh",
            "# Stock vLLM with the plan's pipeline; written by llmpq export. Stages and their devices in the plan:",
            *stages,
            "set -eu",
            'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)',
            places,
            f"export VLLM_PP_LAYER_PARTITION={','.join(map(str, self.partition))}",
            f'exec {server} --config "$here/vllm.yaml" --host "${{HOST:-127.0.0.1}}" --port "${{PORT:-8000}}" "$@"',
            "",
        ])  # fmt: skip


def launch(plan: Mapping[str, Any], problem: Mapping[str, Any], spec: ModelSpec, platform: str, dtype: str) -> Launch:
    """vLLM's settings for ``plan`` (plan.json) of ``problem`` (problem.json); ``dtype`` is what the checkpoint computes in.

    Raises ExportError where stages have unlike numbers of GPUs, which vLLM cannot give them.
    """
    workload, stages = problem["workload"], sorted(plan["stages"], key=lambda stage: stage["first_layer"])
    longest = int(workload["prompt_tokens"]) + int(workload["new_tokens"])
    spec.check_context(longest)
    computing = dtype if platform == "cuda" else _cpu_type(stages)
    partition = [len(stage["options"]) for stage in stages]
    slots = int(workload["slots"])
    engine = {
        "dtype": computing,
        "pipeline_parallel_size": len(stages),
        "tensor_parallel_size": _group_size(stages, problem),
        "max_model_len": longest,
        "max_num_seqs": slots,
        "max_num_batched_tokens": call_tokens(plan["micro_batch"]["prefill"], int(workload["prompt_tokens"]), slots),
        "kv_cache_memory_bytes": max(partition) * cache_bytes(spec, slots, longest, computing),
        "distributed_executor_backend": "mp",
    }
    return Launch(engine, partition, [stage["device"] for stage in stages], platform)


def _cpu_type(stages: list[dict[str, Any]]) -> str:
    """What vLLM computes in on the CPU: its kernel for 4-bit weights has no fp32."""
    return "bfloat16" if any(weight_option(name).bits == 4 for stage in stages for name in stage["options"]) else "float32"


def _group_size(stages: list[dict[str, Any]], problem: Mapping[str, Any]) -> int:
    """How many GPUs each stage has, which must be the same for all."""
    uses = {device["name"]: len(device.get("uses") or [device["name"]]) for device in problem["devices"]}
    sizes = {stage["device"]: uses[stage["device"]] for stage in stages}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ExportError(f"stages have unlike numbers of GPUs ({found}), but vLLM gives every stage the same; plan with equal groups")
    return next(iter(sizes.values()))
