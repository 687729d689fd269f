"""Tiny random models of every family as transformers builds them, each with the variations that change the arithmetic."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_COMMON = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 61, "max_position_embeddings": 64}
_GATED = {**_COMMON, "intermediate_size": 80}
_OPT = {**_COMMON, "ffn_dim": 80}
_BLOOM = {"hidden_size": 48, "n_layer": 3, "vocab_size": 61}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3["original_max_position_embeddings"] = 16

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_GATED, "num_key_value_heads": 6, "tie_word_embeddings": False}),
    "llama-gqa-tied": ("Llama", {**_GATED, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-mqa-biases": ("Llama", {**_GATED, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama-3.1-rope": ("Llama", {**_GATED, "num_key_value_heads": 3, "rope_parameters": _LLAMA3}),
    "llama-linear-rope": (
        "Llama",
        {**_GATED, "num_key_value_heads": 2, "rope_parameters": _LINEAR},
    ),
    "llama-wide-heads": ("Llama", {**_GATED, "num_key_value_heads": 2, "head_dim": 16}),
    "mistral": ("Mistral", {**_GATED, "num_key_value_heads": 6, "sliding_window": None, "tie_word_embeddings": True}),
    "mistral-gqa-window": ("Mistral", {**_GATED, "num_key_value_heads": 2, "sliding_window": 32}),
    "qwen2": ("Qwen2", {**_GATED, "num_key_value_heads": 6, "tie_word_embeddings": True}),
    "qwen2-gqa": ("Qwen2", {**_GATED, "num_key_value_heads": 3, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {**_GATED, "num_key_value_heads": 6, "head_dim": 8, "tie_word_embeddings": False}),
    "qwen3-gqa-tied": ("Qwen3", {**_GATED, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "opt": ("OPT", {**_OPT, "tie_word_embeddings": True}),
    "opt-untied-gelu": ("OPT", {**_OPT, "tie_word_embeddings": False, "activation_function": "gelu", "enable_bias": False}),
    "opt-norm-after": ("OPT", {**_OPT, "do_layer_norm_before": False}),
    "bloom": ("Bloom", {**_BLOOM, "n_head": 8, "tie_word_embeddings": True}),
    "bloom-6-heads-untied": ("Bloom", {**_BLOOM, "n_head": 6, "tie_word_embeddings": False}),
}


@dataclass
class Peer:
    """A transformers model and the directory it was saved to."""

    case: str
    model: Any
    directory: Path

    def logits(self, ids: list[int]) -> torch.Tensor:
        """[tokens, vocab] of one sequence, no padding, no cache."""
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0]


def build(case: str, directory: Path, **changes: Any) -> Peer:
    """Random weights everywhere: norms and biases too, which transformers would leave at one and zero, hiding a forgotten one.

    ``changes`` to the case's settings.
    """
    import transformers

    family, settings = CASES[case]
    config = getattr(transformers, f"{family}Config")(**{**settings, **changes}, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(len(case))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if ("norm" in name and name.endswith("weight")) or "ln_f.weight" in name else 0.0, 0.2)
            else:
                parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(directory)
    return Peer(case, model, directory)
