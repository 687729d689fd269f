"""Round to nearest: every weight to the closest code of its row's or group's grid. No calibration; the yardstick for GPTQ."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmpq.quant.gptq import Quantised
from llmpq.quant.grid import Grid


@torch.no_grad()
def rtn(weight: Tensor, grid: Grid, *, kept: Sequence[int] = ()) -> Quantised:
    """Quantise ``weight`` fp32 [out, in]; ``kept`` columns stay as they are."""
    out_features, in_features = weight.shape
    columns = torch.tensor(sorted(kept), dtype=torch.long)
    rest = weight.index_fill(1, columns, 0.0)
    groups = rest.reshape(-1, grid.group_size or in_features)
    steps = grid.steps(groups)
    codes = grid.codes(groups, steps).to(torch.int8).view(out_features, in_features)
    offsets = None if steps.offsets is None else steps.offsets.view(out_features, -1)
    return Quantised(codes, steps.scales.view(out_features, -1), columns, weight[:, columns].contiguous(), offsets)
