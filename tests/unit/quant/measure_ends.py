"""Run in a process of its own: load embedding and head at pairs of options and print what the process keeps for each, as JSON.

``allocated``: growth of what malloc has handed out (glibc mallinfo2); ``entered``: the bytes that loading announced.
"""

import itertools
import json
import sys

import torch
from measure_resident import settle

from llmpq.model.loading import StageLoader
from llmpq.quant.options import END_OPTIONS


def main() -> None:
    torch.set_num_threads(1)
    model, folder = sys.argv[1:]
    rows, kept = [], []
    pairs = [pair for pair in itertools.product((None, *END_OPTIONS["embedding"]), (None, *END_OPTIONS["head"])) if any(pair)]
    for pair in pairs:
        StageLoader(model, folder).load(0, [], *pair)  # what a first time allocates for good is not the model's
        before = settle()
        kept.append(StageLoader(model, folder).load(0, [], *pair))
        after = settle()
        rows.append({"ends": pair, "entered": sum(kept[-1].resident_bytes.values()), "allocated": after[0] - before[0]})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
