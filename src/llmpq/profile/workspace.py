"""Peak temporary bytes of a call, measured at torch's own allocator."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on every start otherwise; read when torch loads it

from torch.profiler import ProfilerActivity, profile


def peak_temporary_bytes(call: Callable[[], Any]) -> int:
    """The largest number of bytes that ``call`` held at once beyond what was allocated before it, its result included.

    Adds up torch's allocation events in order; scratch that a kernel library takes past torch's allocator is not seen (FBGEMM's packing
    buffers, a few hundred KiB).
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del result
    return peak
