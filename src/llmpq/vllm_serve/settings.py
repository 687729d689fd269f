"""What vLLM on processor cores is told beside the plan's own settings, in serving as in profiles."""

from collections.abc import Sequence
from typing import Any

BACKEND = "vllm"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_TRACE_ONLY = {"mode": 2, "backend": "eager"}  # vLLM's DYNAMO_TRACE_ONCE without a compiler; a pipeline does not run without the trace


def compiling(compiled: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine: its own compiler, or none."""
    return {} if compiled else {"compilation_config": _TRACE_ONLY}


def environment_of(partition: Sequence[int], cores: Sequence[Sequence[int]]) -> dict[str, str]:
    """Variables for stages of ``partition`` layers on ``cores`` each."""
    threads = str(max(map(len, cores)))
    return {
        **dict.fromkeys(_THREADS, threads),  # whoever started this process may have said how many it has itself
        "VLLM_PP_LAYER_PARTITION": ",".join(map(str, partition)),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, each)) for each in cores),
    }
