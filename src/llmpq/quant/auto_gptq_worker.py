"""GPTQ as the package auto-gptq does it: a program for the package's own environment, which :mod:`llmpq.quant.auto_gptq` runs and talks to.

Standard input has one JSON object a line: the file ``given`` with tensors ``weight`` [out, in] and ``hessian`` [in, in], the file
``made`` to write, and the settings of :func:`quantise`. Each is answered by a line of standard output, ``{}`` or ``{"error": …}``; the
first line, before any question, says that the package is there. Needs auto-gptq, torch and safetensors, and nothing of llmpq.
"""

import json
import os
import sys
from typing import Any

import torch
from torch import Tensor


def quantise(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    damping: float,
    act_order: bool,
    static_groups: bool,
    served: bool,
) -> dict[str, Tensor]:
    """Quantise fp32 ``weight`` by the package's ``GPTQ`` on our Hessian; ``group_size`` 0 is a scale per row.

    ``served``: on the package's grid with scales and offsets rounded to bf16 before any code is chosen, as layer files hold them; gives
    ``codes`` int8, ``scales`` and, where asymmetric, ``offsets`` fp32 [out, groups]. Else by the package's ``Quantizer`` as it is, in
    fp32; gives ``weight`` [out, in] alone.
    """
    from auto_gptq.quantization.gptq import GPTQ

    out_features, in_features = weight.shape
    layer = torch.nn.utils.skip_init(torch.nn.Linear, in_features, out_features, bias=False)
    layer.weight.data = weight
    package = GPTQ(layer)
    package.H, package.nsamples = hessian, 1
    if served:
        package.quantizer = served_quantizer()
    package.quantizer.configure(bits, perchannel=True, sym=symmetric, mse=False)
    scales, zeros, _ = package.fasterquant(
        percdamp=damping,
        group_size=group_size or -1,
        actorder=act_order,
        # A layer file has the columns of a group side by side, which the package keeps under act_order only with static groups.
        static_groups=bool(group_size) and (static_groups or act_order),
    )
    if not served:
        return {"weight": layer.weight.data.contiguous()}
    offsets = _offsets(scales, zeros, bits)
    wide = [steps.repeat_interleave(group_size or in_features, dim=1) for steps in (scales, offsets)]
    codes = torch.round((layer.weight.data - wide[1]) / wide[0])
    made = {"codes": codes.to(torch.int8).contiguous(), "scales": scales.contiguous()}
    return made if symmetric else {**made, "offsets": offsets.contiguous()}


def served_quantizer() -> Any:
    """The package's ``Quantizer`` with the steps it finds rounded to bf16: weight = scale · code + offset, codes centred on zero."""
    from auto_gptq.quantization.quantizer import Quantizer

    class Served(Quantizer):
        def find_params(self, x: Tensor, weight: bool = False) -> None:
            super().find_params(x, weight)
            self.scale: Tensor = self.scale.bfloat16().float()

        def quantize(self, x: Tensor) -> Tensor:
            bits = int(self.maxq + 1).bit_length() - 1
            offsets, half = _offsets(self.scale, self.zero, bits), 2 ** (bits - 1)
            return torch.round((x - offsets) / self.scale).clamp_(-half, half - 1) * self.scale + offsets

    return Served()


def _offsets(scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """What a code of zero stands for, once codes are centred on it; 0 on symmetric grids, whose zero point is the middle."""
    return (scales * (2 ** (bits - 1) - zeros)).bfloat16().float()


def main() -> None:
    # The package prints on import; answers go to a copy of standard output, all else to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from auto_gptq import __version__ as version
    from safetensors.torch import load_file, save_file

    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None  # the package waits for a GPU after every operator
    print(json.dumps({"auto_gptq": version}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        given, made = request.pop("given"), request.pop("made")
        try:
            tensors = load_file(given)
            save_file(quantise(tensors["weight"], tensors["hessian"], **request), made)
            answer = {}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
