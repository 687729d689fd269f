"""The weight options a layer may have: named ways to store a weight and to multiply with it.

An option is more than a width: two options can share their codes and still differ in speed and in damage (``8`` and ``w8a8``),
so everything downstream is keyed by option name. A name says bits, ``a`` for asymmetric grids, and the input columns that share a scale
where that is not the width's usual choice: ``4`` (symmetric, groups of 64), ``4-g128``, ``4a-g32``, ``4-row``, ``8a``. ``bnb-int8`` and
``bnb-nf4`` are bitsandbytes' LLM.int8 and NF4, rounded and multiplied by that package.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llmpq.errors import ConfigError

OUTLIER_COLUMNS = 32
"""Input columns that ``w8a8-outlier`` keeps in fp32: in quantising, counting bytes and profiling alike (32 of 576
bring SmolLM2 from perplexity 17.96 to 16.82, fp32 16.54)."""

GROUP_SIZE = 64
"""Input columns sharing one scale at 2, 3 and 4 bit. 64 divides the hidden sizes of small models too (128 does not divide 576)."""

END_OPTIONS = {"embedding": ("32", "16", "8"), "head": ("32", "16", "bf16", "8", "w8a8")}
"""What the two ends of a model may be. An embedding is looked up, not multiplied, so rounding activations means nothing to it; groups of
columns would make a look-up slower, and 4 bit costs either end more than a whole layer."""

KV_OPTIONS = ("16", "8")
"""How a layer may keep its keys and values: in fp16, or as 8-bit codes (llmpq.model.cache)."""

DEFAULT_KV = "16"

GROUP_SIZES = (0, 32, 64, 128)
"""What a scale may be shared by: 0 is a whole output row."""


@dataclass(frozen=True)
class WeightOption:
    """One way to store and multiply a weight.

    ``bits`` per weight code; ``group_size`` input columns per scale (0: one scale per output row); ``symmetric`` codes times scales, else
    plus an offset per group; ``activation_bits`` at most of what the kernel multiplies with; ``kernel`` is the family serving it;
    ``outliers`` tells whether some columns stay in fp32; ``package`` is the one that rounds the weights, where it is not llmpq.
    """

    name: str
    bits: int
    group_size: int
    symmetric: bool
    activation_bits: int
    kernel: str
    outliers: bool = False
    package: str = ""

    @property
    def quantised(self) -> bool:
        """Whether weights are integer codes times scales (else plain floating point)."""
        return self.bits <= 8

    @property
    def quantises_activations(self) -> bool:
        """Whether the kernel rounds its input to integers, a damage that no look at the weights can see."""
        return self.activation_bits < 16

    @property
    def grid_key(self) -> tuple[int, int, bool, bool, str]:
        """What decides the codes: options of equal key share them (``8`` and ``w8a8``)."""
        return (self.bits, self.group_size, self.symmetric, self.outliers, self.package)

    def groups(self, in_features: int) -> int:
        """How many scales an output row of ``in_features`` columns has."""
        return in_features // self.group_size if self.group_size else 1


def _weight_only(bits: int, group_size: int, symmetric: bool) -> WeightOption:
    """Integer codes beside bf16 activations; ``8`` has a scale per row, narrower ones per group of 64 unless the name says otherwise."""
    usual = 0 if bits == 8 else GROUP_SIZE
    shared = "" if group_size == usual else f"-g{group_size}" if group_size else "-row"
    kernel = f"int{bits}" if bits < 8 or (symmetric and not group_size) else "int8-grouped"
    return WeightOption(f"{bits}{'' if symmetric else 'a'}{shared}", bits, group_size, symmetric, 16, kernel)


USUAL = ("32", "16", "bf16", "8", "w8a8", "w8a8-outlier", "bnb-int8", "bnb-nf4", "4", "3", "2")
"""The options that need no explanation; all others are variants of ``8``, ``4``, ``3`` and ``2``."""

_KNOWN = (
    WeightOption("32", 32, 0, True, 32, "float"),
    WeightOption("16", 16, 0, True, 32, "fp16"),
    WeightOption("bf16", 16, 0, True, 16, "bf16"),
    WeightOption("w8a8", 8, 0, True, 8, "int8-dynamic"),
    WeightOption("w8a8-outlier", 8, 0, True, 8, "int8-dynamic", outliers=True),
    WeightOption("bnb-int8", 8, 0, True, 8, "bnb-int8", package="bitsandbytes"),
    WeightOption("bnb-nf4", 4, 64, True, 16, "bnb-nf4", package="bitsandbytes"),
    *(_weight_only(bits, size, symmetric) for bits in (8, 4, 3, 2) for symmetric in (True, False) for size in GROUP_SIZES),
)
_KV = "/kv"
OPTIONS: dict[str, WeightOption] = {option.name: option for option in _KNOWN}


def weight_option(name: str) -> WeightOption:
    """The option called ``name``; ConfigError saying which there are otherwise."""
    try:
        return OPTIONS[name]
    except KeyError:
        raise ConfigError(f"unknown weight option '{name}'; known options are {known_options()}") from None


@dataclass(frozen=True)
class LayerOption:
    """What a plan says of one layer: a weight option, and how keys and values are kept ("4/kv8"; "4" keeps them at 16, "32" at 32)."""

    weights: WeightOption
    kv: str

    @property
    def rounds_cache(self) -> bool:
        """Whether the cache does damage worth judging; fp16 does none that can be measured."""
        return self.kv == "8"

    @property
    def name(self) -> str:
        return self.weights.name if self.kv == _usual_kv(self.weights) else f"{self.weights.name}{_KV}{self.kv}"


def layer_option(name: str) -> LayerOption:
    """The option called ``name``; ConfigError saying which there are otherwise."""
    weights, separator, kv = name.partition(_KV)
    if separator and kv not in KV_OPTIONS:
        raise ConfigError(f"option '{name}' keeps its cache at '{kv}'; a cache may have {', '.join(KV_OPTIONS)}")
    found = weight_option(weights)
    return LayerOption(found, kv if separator else _usual_kv(found))


def layer_options(options: Iterable[str], kv_options: Iterable[str]) -> list[str]:
    """Every weight option of ``options`` with every cache of ``kv_options``, by name and once each, those of one cache together."""
    weights = list(dict.fromkeys(options))
    return [LayerOption(weight_option(option), kv).name for kv in dict.fromkeys(kv_options) for option in weights]


def _usual_kv(weights: WeightOption) -> str:
    """Option ``32`` is the yardstick: everything in fp32, the cache too."""
    return "32" if weights.bits == 32 else DEFAULT_KV


def options_of_end(end: str, options: Iterable[str]) -> list[str]:
    """Those of ``options`` that the ``end`` (``embedding`` or ``head``) may have, in their order and once each."""
    return [option for option in dict.fromkeys(options) if option in END_OPTIONS[end]]


def quantised_options(options: Iterable[str]) -> list[str]:
    """Those of ``options`` that need files of codes; 32, 16 and bf16 come straight from a checkpoint."""
    return [option for option in options if weight_option(option).quantised]


def known_options() -> str:
    """All names in a sentence."""
    return f"{', '.join(USUAL)}, and variants of the last such as 4a (asymmetric), 4-g128, 4a-g32 and 4-row (columns per scale)"


def outlier_count(in_features: int, wanted: int = OUTLIER_COLUMNS) -> int:
    """How many of ``in_features`` columns stay in fp32: ``wanted``, but never more than half of them."""
    return min(wanted, in_features // 2)
