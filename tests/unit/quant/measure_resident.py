"""Run in a process of its own: pack n layers at every option in turn and print what the process keeps for each, as JSON.

``allocated``: growth of what malloc has handed out (glibc mallinfo2), ``resident``: growth of anonymous pages in memory.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch
from quant_cases import arbitrary, fits

from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.options import OPTIONS


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


_LIBC = ctypes.CDLL("libc.so.6")
_LIBC.mallinfo2.restype = _Mallinfo2


def settle() -> tuple[int, int]:
    gc.collect()
    _LIBC.malloc_trim(0)
    info = _LIBC.mallinfo2()
    status = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return info.uordblks + info.hblkhd, int(status[status.index("RssAnon:") + 1]) * 1024


def main() -> None:
    torch.set_num_threads(1)
    layers, shapes = int(sys.argv[1]), [tuple(map(int, shape.split("x"))) for shape in sys.argv[2:]]
    options = [option for option in OPTIONS if all(fits(option, shape) for shape in shapes)]
    growth = {}
    for option in options:
        kept = []
        tensors = {shape: arbitrary(option, *shape) for shape in shapes}
        for shape in shapes:
            make_linear(option, tensors[shape])(torch.zeros(1, shape[1]))
        before = settle()
        for _ in range(layers):
            kept.append([make_linear(option, tensors[shape]) for shape in shapes])
        after = settle()
        growth[option] = {"allocated": after[0] - before[0], "resident": after[1] - before[1]}
    print(json.dumps(growth))


if __name__ == "__main__":
    main()
