"""What the int4 kernel can share a scale between: groups of 32, 64, 128 or 256 input columns, never a whole row of any other length."""

from llmpq.errors import LlmpqError
from llmpq.quant.options import WeightOption

_KERNEL_GROUPS = (256, 128, 64, 32)


def kernel_group_size(option: WeightOption, in_features: int) -> int:
    """Columns that share a scale in memory: the option's own groups; where a row has one scale, it is repeated for the largest that fit."""
    sizes = (option.group_size,) if option.group_size else _KERNEL_GROUPS
    for size in sizes:
        if in_features % size == 0:
            return size
    wanted = f"{option.group_size} (its group)" if option.group_size else str(min(sizes))
    raise LlmpqError(f"option '{option.name}' needs input features in multiples of {wanted}, not {in_features}")


def kernel_groups(option: WeightOption, in_features: int) -> int:
    """Scales per output row in memory."""
    return in_features // kernel_group_size(option, in_features)
