"""One decoder layer of any supported family, for prefill and decode. Its linear operators are whatever the option's kernel provides."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from llmpq.model.cache import FORMATS, KeysValues
from llmpq.model.positions import DecodeContext, PrefillContext, rotate
from llmpq.model.spec import ModelSpec
from llmpq.native import available, kernels
from llmpq.quant.options import DEFAULT_KV

Operator = Callable[[Tensor], Tensor]
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {  # by our names (llmpq.model.activation), free to work in place
    "silu": lambda x: F.silu(x, inplace=True),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu_,
}


def _natively(x: Tensor) -> bool:
    """Whether C does what comes next: it is there, and nobody wants a gradient, which it does not give."""
    return available() and not x.requires_grad


class Norm:
    """RMS norm or LayerNorm over the last dimension, weights fp32."""

    def __init__(self, spec: ModelSpec, weight: Tensor, bias: Tensor | None = None) -> None:
        self.shape, self.eps, self.rms = tuple(weight.shape), spec.norm_eps, spec.norm == "rms"
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        if self.rms and _natively(x):
            return kernels.rms_norm(x.contiguous(), self.weight, self.eps)
        if self.rms:
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class DecoderLayer:
    """A layer from its canonical norm tensors (Checkpoint.layer) and one callable x [..., in] → [..., out] per ModelSpec.operators.

    ``kv`` is the precision of its cache (llmpq.model.cache.FORMATS). Attention sees keys and values as the cache keeps them, in prefill and
    without a cache too, so that what is scored is what serves. What an operator returns is overwritten: in prefill a fresh tensor costs
    more in page faults than the arithmetic that fills it.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor], operators: Mapping[str, Operator], kv: str = DEFAULT_KV) -> None:
        self.spec, self.kv, self.kv_format = spec, kv, FORMATS[kv]
        self.attention_norm = Norm(spec, tensors["attention_norm.weight"], tensors.get("attention_norm.bias"))
        self.mlp_norm = Norm(spec, tensors["mlp_norm.weight"], tensors.get("mlp_norm.bias"))
        self.qkv, self.o, self.down = operators["qkv"], operators["o"], operators["down"]
        self.up = operators["gate_up" if spec.gated else "up"]
        self.activation = _ACTIVATIONS[spec.activation]
        self.head_norm: Tensor | None = None
        if spec.qk_norm:
            query = tensors["q_norm.weight"].expand(spec.heads, -1)
            self.head_norm = torch.cat((query, tensors["k_norm.weight"].expand(spec.kv_heads, -1)))

    def prefill(self, hidden: Tensor, context: PrefillContext, cache: KeysValues | None = None) -> Tensor:
        """hidden [rows, tokens, hidden] → the same; keys and values go into ``cache``.

        ``cache`` is that of the rows, or of all slots where ``context.slots`` says which are the rows'; filled from 0.
        """
        return self._around(hidden, lambda x: self._attend_prompt(x, context, cache))

    def decode(self, hidden: Tensor, context: DecodeContext, cache: KeysValues) -> Tensor:
        """hidden [rows, hidden] of one new token per row → the same shape; the token's key and value are written at its position."""
        return self._around(hidden, lambda x: self._attend_cache(x, context, cache))

    def _around(self, hidden: Tensor, attend: Operator) -> Tensor:
        if self.spec.norm_first:
            hidden = attend(self.attention_norm(hidden)).add_(hidden)
            return self._mlp(self.mlp_norm(hidden)).add_(hidden)
        hidden = self.attention_norm(attend(hidden).add_(hidden))
        return self.mlp_norm(self._mlp(hidden).add_(hidden))

    def _mlp(self, x: Tensor) -> Tensor:
        if not self.spec.gated:
            return self.down(self.activation(self.up(x)))
        both = self.up(x)
        if self.spec.activation == "silu" and _natively(both):
            return self.down(kernels.silu_mul(both))
        gate, up = both.chunk(2, -1)
        return self.down(self.activation(gate) * up)

    def _heads(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., heads, head_dim], keys and values [..., kv_heads, head_dim]; queries and keys are normed and rotated together."""
        spec = self.spec
        fused = self.qkv(x).view(*x.shape[:-1], spec.heads + 2 * spec.kv_heads, spec.head_dim)
        queries_keys, values = fused[..., : spec.heads + spec.kv_heads, :], fused[..., spec.heads + spec.kv_heads :, :]
        if self.head_norm is not None:
            queries_keys = F.rms_norm(queries_keys, (spec.head_dim,), None, spec.norm_eps) * self.head_norm
        if rotary is not None:
            queries_keys = rotate(queries_keys, *rotary)
        return queries_keys[..., : spec.heads, :], queries_keys[..., spec.heads :, :], values

    def _attend_prompt(self, x: Tensor, context: PrefillContext, cache: KeysValues | None) -> Tensor:
        queries, keys, values = (part.transpose(1, 2) for part in self._heads(x, context.rotary))
        kept = [self.kv_format.pack(new) for new in (keys, values)]
        if cache is not None:
            rows = slice(None) if context.slots is None else context.slots
            for stored, parts in zip(cache, kept, strict=True):
                for place, part in zip(stored, parts, strict=True):
                    place[rows, :, : context.tokens] = part
        keys, values = map(self.kv_format.unpack, kept)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=context.bias, is_causal=context.bias is None, enable_gqa=self.spec.group > 1
        )
        return self.o(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))

    def _attend_cache(self, x: Tensor, context: DecodeContext, cache: KeysValues) -> Tensor:
        if self.kv == "16" and _natively(x):
            heads = self._heads(x, None)
            (keys,), (values,) = cache
            mixed = kernels.decode_attention(*heads, (keys, values), context.positions, context.length, context.rotary, context.slopes)
            return self.o(mixed.view(*x.shape[:-1], -1))
        queries, keys, values = self._heads(x, context.rotary)
        for stored, new in zip(cache, (keys, values), strict=True):
            for place, part in zip(stored, self.kv_format.pack(new), strict=True):
                if context.common is not None:
                    place[:, :, context.common] = part
                else:
                    place[context.rows, :, context.positions] = part
        # The query heads of a KV head stand in the query dimension, so keys and values are never expanded to all heads.
        grouped = queries.view(-1, self.spec.kv_heads, self.spec.group, self.spec.head_dim)
        seen_keys, seen_values = (self.kv_format.unpack(tuple(part[:, :, : context.length] for part in stored)) for stored in cache)
        mixed = F.scaled_dot_product_attention(grouped, seen_keys, seen_values, attn_mask=context.bias)
        return self.o(mixed.reshape(*x.shape[:-1], -1))
