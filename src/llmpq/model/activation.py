"""The activations of the supported families: our names, Hugging Face's names for them, and the functions (free to work in place)."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from llmpq.model.config_file import ConfigFile

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: F.silu(x, inplace=True),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu_,
}
_PUBLISHED_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation_name(config: ConfigFile, key: str, default: str) -> str:
    """Our name of the activation in config.json; raise ModelError when it is not one of those implemented."""
    name = config.text(key, default)
    if name not in _PUBLISHED_NAMES:
        raise config.refuse(key, f"this activation is not implemented (known: {', '.join(_PUBLISHED_NAMES)})")
    return _PUBLISHED_NAMES[name]
