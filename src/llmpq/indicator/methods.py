"""Every indicator by its name in the configuration."""

from collections.abc import Callable

from llmpq.errors import ConfigError
from llmpq.indicator.base import Indicator, Source
from llmpq.indicator.divergence import Divergence
from llmpq.indicator.gptq_loss import GptqLoss
from llmpq.indicator.gradient import GradientError
from llmpq.indicator.hessian import Hessian
from llmpq.indicator.random_control import RandomControl
from llmpq.indicator.residual_error import ResidualError
from llmpq.indicator.variance import Variance

METHODS: dict[str, Callable[[Source], Indicator]] = {
    "residual-error": ResidualError,
    "variance": Variance,
    "gptq-loss": GptqLoss,
    "hessian": Hessian,
    "gradient": GradientError,
    "divergence": Divergence,
    "random": RandomControl,
}


SEE_CACHES = ("residual-error", "gradient", "divergence", "random")
"""Those that can judge how keys and values are kept: the others look at operators one by one."""


def method(name: object) -> Callable[[Source], Indicator]:
    """The method called ``name``; ConfigError listing the known ones otherwise."""
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"indicator.method '{name}' is unknown; known are {', '.join(METHODS)}")
    return METHODS[name]
