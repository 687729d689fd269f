"""What JSON Schema cannot say about a problem.json: that its parts fit together. One message, which names the key, for the first fault."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmpq.errors import ArtifactError
from llmpq.plan.microbatch import MicroBatches, candidates, needed_sizes
from llmpq.plan.options import DEFAULT_KV, bits_of, kv_precision

PHASES = ("prefill", "decode")
ENDS = ("embedding", "head")
# The end option that is the model itself: harmless unless the problem says otherwise.
HARMLESS = "16"


def weight_bits(options: Sequence[str], given: Mapping[str, int]) -> dict[str, int]:
    """Weight bits by option: given, or the first number in the name; 0 where there is neither."""
    return {option: int(given.get(option, bits_of(option) or 0)) for option in options}


def cache_bytes(document: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of one layer's KV cache by its precision; a single number is for the default precision."""
    given = document["kv_bytes_per_layer"]
    return {precision: int(size) for precision, size in given.items()} if isinstance(given, dict) else {DEFAULT_KV: int(given)}


class ProblemChecker:
    """What JSON Schema cannot say: that the parts of a problem fit together."""

    def __init__(self, document: Mapping[str, Any], path: str) -> None:
        self.document = document
        self.path = path
        self.micro_batches: list[MicroBatches] = []

    def fail(self, key: str, message: str) -> None:
        raise ArtifactError(f"{self.path}: key '{key}': {message}")

    def run(self) -> None:
        self.check_workload()
        self.check_options()
        self.check_ends()
        self.check_micro_batches()
        self.check_links()
        for index in range(len(self.document["devices"])):
            self.check_device(index)

    def check_workload(self) -> None:
        workload = self.document["workload"]
        if workload["requests"] < workload["slots"]:
            self.fail("workload.slots", f"is {workload['slots']}, more than workload.requests ({workload['requests']}); make it smaller")
        if self.document["schedule"] == "barrier" and workload["requests"] % workload["slots"]:
            message = (
                f"{workload['requests']} is not a multiple of workload.slots ({workload['slots']}); the barrier schedule runs full batches"
            )
            self.fail("workload.requests", message)

    def check_options(self) -> None:
        layers, omega = self.document["model"]["layers"], self.document["omega"]
        for option in self.document["options"]:
            if option not in omega:
                self.fail(f"omega.{option}", f"missing; expected {layers} numbers, one per layer")
        for option, row in omega.items():
            if len(row) != layers:
                self.fail(f"omega.{option}", f"has {len(row)} numbers, expected {layers}, one per layer")
        known = [*self.document["options"], *self.document["end_options"]]
        for option in self.document.get("bits", {}):
            if option not in known:
                self.fail(f"bits.{option}", f"unknown option; options are {', '.join(dict.fromkeys(known))}")
        for option, bits in weight_bits(known, self.document.get("bits", {})).items():
            if bits == 0:
                self.fail("bits", f"option '{option}' has no number in its name: give its weight bits here")
        caches = cache_bytes(self.document)
        for option in self.document["options"]:
            if kv_precision(option) not in caches:
                message = f"no entry for cache precision {kv_precision(option)}, which option '{option}' uses; found {', '.join(caches)}"
                self.fail("kv_bytes_per_layer", message)

    def check_ends(self) -> None:
        """Every device offers known end options only, and where there is a choice every end option has its sensitivity."""
        options, given = self.document["end_options"], self.document.get("end_omega", {})
        for end in ENDS:
            for option in given.get(end, {}):
                if option not in options:
                    self.fail(f"end_omega.{end}.{option}", f"unknown end option; end_options are {', '.join(options)}")
            offered = {option for device in self.document["devices"] for option in device[end]}
            for option in options:
                if len(offered) > 1 and option in offered and option != HARMLESS and option not in given.get(end, {}):
                    self.fail(f"end_omega.{end}.{option}", "missing; where an end has several options each needs its sensitivity")
        for index, device in enumerate(self.document["devices"]):
            for end in ENDS:
                for option in device[end]:
                    if option not in options:
                        self.fail(f"devices[{index}].{end}.{option}", f"unknown end option; end_options are {', '.join(options)}")
            self.check_shared(f"devices[{index}]", device)

    def check_shared(self, where: str, device: Mapping[str, Any]) -> None:
        """Only a head shares bytes, and no more than it or the embedding at that option has."""
        for kind in ("options", "embedding"):
            for option, part in device[kind].items():
                if "shared_bytes" in part:
                    self.fail(f"{where}.{kind}.{option}.shared_bytes", "only a head has it: what it shares with the embedding")
        for option, part in device["head"].items():
            both = [entry["resident_bytes"] for entry in (part, device["embedding"].get(option)) if entry is not None]
            if part.get("shared_bytes", 0) > (min(both) if len(both) == 2 else 0):
                least = f"{min(both)} bytes" if len(both) == 2 else f"0 bytes: there is no embedding at option {option}"
                self.fail(f"{where}.head.{option}.shared_bytes", f"is {part['shared_bytes']}, head and embedding can share {least}")

    def check_micro_batches(self) -> None:
        slots, listed = self.document["workload"]["slots"], self.document.get("micro_batches", {})
        for phase in PHASES:
            for size in listed.get(phase) or ():
                if size > slots:
                    self.fail(f"micro_batches.{phase}", f"{size} is more than workload.slots ({slots})")
        self.micro_batches = candidates(slots, listed.get("prefill"), listed.get("decode"))
        if not self.micro_batches:
            self.fail("micro_batches", "no prefill size is as small as a decode size; a prefill chunk is a part of a decode micro-batch")

    def check_links(self) -> None:
        names = [device["name"] for device in self.document["devices"]]
        for index, name in enumerate(names):
            if name in names[:index]:
                self.fail(f"devices[{index}].name", f"'{name}' is already the name of device {names.index(name)}")
        seen = set()
        for index, link in enumerate(self.document["links"]):
            for end in ("from", "to"):
                if link[end] not in names:
                    self.fail(f"links[{index}].{end}", f"unknown device '{link[end]}'; devices are {', '.join(names)}")
            pair = (link["from"], link["to"])
            if pair in seen or pair[0] == pair[1]:
                self.fail(f"links[{index}]", f"{'repeats' if pair in seen else 'is'} the pair {pair[0]} → {pair[1]}")
            seen.add(pair)
        uses = {device["name"]: set(device.get("uses", [device["name"]])) for device in self.document["devices"]}
        for a in names:
            for b in names:
                if a != b and (a, b) not in seen and uses[a].isdisjoint(uses[b]):
                    self.fail("links", f"no link {a} → {b}; every ordered pair of devices that can be in one order needs one")

    def check_device(self, index: int) -> None:
        device, where = self.document["devices"][index], f"devices[{index}]"
        for option in device["options"]:
            if option not in self.document["options"]:
                self.fail(f"{where}.options.{option}", f"unknown option; options are {', '.join(self.document['options'])}")
        needed = needed_sizes(self.micro_batches)
        tables = [(f"{where}.options.{name}", part) for name, part in device["options"].items()]
        tables += [(f"{where}.{end}.{name}", part) for end in ENDS for name, part in device[end].items()]
        for phase in PHASES:
            for key, part in tables:
                self.check_sizes(f"{key}.{phase}_ms", part[f"{phase}_ms"], needed[phase])
                self.check_lengths(f"{key}.{phase}_by_length_ms", part, phase)
            self.check_sizes(f"{where}.workspace_bytes.{phase}", device["workspace_bytes"][phase], needed[phase])

    def check_lengths(self, key: str, part: Mapping[str, Any], phase: str) -> None:
        table = part.get(f"{phase}_by_length_ms")
        if (table is None) != ("lengths" not in self.document):
            missing = "is missing" if table is None else "is there, but the problem has no lengths"
            self.fail(key, f"{missing}; give lengths and tables by length for every part, or neither")
        if table is None:
            return
        lengths = self.document["lengths"][phase]
        if lengths != sorted(lengths):
            self.fail(f"lengths.{phase}", f"is {lengths}, not in ascending order")
        if set(table) != set(part[f"{phase}_ms"]):
            self.fail(key, f"has sizes {', '.join(table)}; the same are expected as in {phase}_ms: {', '.join(part[f'{phase}_ms'])}")
        for size, row in table.items():
            if len(row) != len(lengths):
                self.fail(f"{key}.{size}", f"has {len(row)} numbers, expected {len(lengths)}, one for each of lengths.{phase}")

    def check_sizes(self, key: str, table: Mapping[str, float], needed: list[int]) -> None:
        missing = [size for size in needed if str(size) not in table]
        if missing:
            sizes = ", ".join(map(str, missing))
            self.fail(key, f"no entry for micro-batch size {sizes}; add it, or list the sizes to try under micro_batches")
        if any(not math.isfinite(value) for value in table.values()):
            self.fail(key, "holds a number that is not finite")
