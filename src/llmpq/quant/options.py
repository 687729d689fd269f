"""The weight options a layer may have: named ways to store a weight and to multiply with it.

An option is more than a width: two options can share their codes and still differ in speed and in damage (``8`` and ``w8a8``),
so everything downstream is keyed by option name.
"""

from dataclasses import dataclass

from llmpq.errors import ConfigError

OUTLIER_COLUMNS = 32
"""Input columns that ``w8a8-outlier`` keeps in fp32: in quantising, counting bytes and profiling alike (32 of 576
bring SmolLM2 from perplexity 17.96 to 16.82, fp32 16.54)."""

GROUP_SIZE = 64
"""Input columns sharing one scale at 3 and 4 bit. 64 divides the hidden sizes of small models too (128 does not divide 576)."""


@dataclass(frozen=True)
class WeightOption:
    """One way to store and multiply a weight.

    ``bits`` per weight code; ``group_size`` input columns per scale (0: one scale per output row); ``activation_bits`` of what the
    kernel multiplies with; ``kernel`` is the family of kernels serving it; ``outliers`` tells whether some columns stay in fp32.
    """

    name: str
    bits: int
    group_size: int
    symmetric: bool
    activation_bits: int
    kernel: str
    outliers: bool = False

    @property
    def quantised(self) -> bool:
        """Whether weights are integer codes times scales (else plain floating point)."""
        return self.bits <= 8

    @property
    def quantises_activations(self) -> bool:
        """Whether the kernel rounds its input to integers, a damage that no look at the weights can see."""
        return self.activation_bits < 16

    @property
    def grid(self) -> tuple[int, int, bool]:
        """What decides the codes: options of equal grid share them (``8`` and ``w8a8``)."""
        return (self.bits, self.group_size, self.outliers)


OPTIONS: dict[str, WeightOption] = {
    option.name: option
    for option in (
        WeightOption("32", 32, 0, True, 32, "float"),
        WeightOption("16", 16, 0, True, 32, "fp16"),
        WeightOption("8", 8, 0, True, 16, "int8"),
        WeightOption("w8a8", 8, 0, True, 7, "int8-dynamic"),
        WeightOption("w8a8-outlier", 8, 0, True, 7, "int8-dynamic", outliers=True),
        WeightOption("4", 4, GROUP_SIZE, True, 16, "int4"),
        WeightOption("3", 3, GROUP_SIZE, True, 16, "int3"),
    )
}


def weight_option(name: str) -> WeightOption:
    """The option called ``name``; ConfigError listing the known ones otherwise."""
    try:
        return OPTIONS[name]
    except KeyError:
        raise ConfigError(f"unknown weight option '{name}'; known options are {', '.join(OPTIONS)}") from None


def outlier_count(in_features: int, wanted: int = OUTLIER_COLUMNS) -> int:
    """How many of ``in_features`` columns stay in fp32: ``wanted``, but never more than half of them."""
    return min(wanted, in_features // 2)
