"""What vLLM is asked about a tiny model, and the same model in transformers with activations rounded as vLLM rounds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEW = 8


def texts() -> list[list[int]]:
    """Three random texts of unlike length."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, 61, (length,), generator=draw).tolist() for length in (12, 7, 30)]


def asked(model: Path, partition: Sequence[int], dtype: str = "float32") -> dict[str, Any]:
    """What llmpq.vllm_serve.engine is asked: each text continued, and all of its tokens scored. Stages share the first two cores."""
    engine = {
        "dtype": dtype,
        "pipeline_parallel_size": len(partition),
        "max_model_len": 64,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "kv_cache_memory_bytes": 64 << 20,
        "distributed_executor_backend": "mp",
        "enable_prefix_caching": False,
        "compilation_config": {"mode": 2, "backend": "eager"},
    }
    cores = "|".join(str(stage % 2) for stage in range(len(partition)))
    environment = {"VLLM_PP_LAYER_PARTITION": ",".join(map(str, partition)), "VLLM_CPU_OMP_THREADS_BIND": cores}
    requests = [{"prompt_tokens": text, "max_new_tokens": NEW} for text in texts()]
    return {
        "model": str(model),
        "engine": engine,
        "environment": environment,
        "requests": requests,
        "ends": [],
        "margins": True,
        "scored": texts(),
    }


def rounded(inputs: Tensor) -> Tensor:
    """Each token's activations on 255 levels, as vLLM's kernel rounds them; transformers divides by 127.5."""
    scale = (inputs.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (inputs / scale).round() * scale


def as_vllm_rounds(directory: Path) -> Any:
    """The export in transformers, which does not round activations itself then."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model(torch.tensor([[1, 2]]))  # the first call unpacks the weights
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.input_activations is not None and hasattr(module, "weight"):
            module.forward = lambda inputs, own=module: torch.nn.functional.linear(rounded(inputs), own.weight, own.bias)
    return model


def scores(logits: Tensor, text: list[int]) -> Tensor:
    """Log-probabilities of all tokens but the first, from logits [1, t, vocab]."""
    return logits[0, :-1].float().log_softmax(-1).gather(1, torch.tensor(text[1:])[:, None])[:, 0]
