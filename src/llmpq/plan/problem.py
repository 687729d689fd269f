"""The planning problem: a checked, typed view of problem.json (docs/artifacts.md)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.plan.microbatch import MicroBatches, balanced, candidates, needed_sizes

__all__ = ["PHASES", "Device", "Link", "Part", "Problem", "balanced"]

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Part:
    """One decoder layer under one option, or an embedding or head: bytes, and ms per (phase, micro-batch size)."""

    resident_bytes: int
    stored_bytes: int
    ms: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Device:
    name: str
    type: str
    memory_bytes: int
    options: Mapping[str, Part]
    embedding: Part
    head: Part
    workspace_bytes: Mapping[str, Mapping[int, int]]
    overhead_ms: Mapping[str, float]


@dataclass(frozen=True)
class Link:
    """Cost of one message: alpha_ms + bytes / bytes_per_ms."""

    alpha_ms: float
    bytes_per_ms: float

    def ms(self, payload_bytes: float) -> float:
        return self.alpha_ms + payload_bytes / self.bytes_per_ms


@dataclass(frozen=True)
class Problem:
    """A problem that passed every check: see ``from_document``."""

    document: Mapping[str, Any]
    name: str
    layers: int
    requests: int
    slots: int
    prompt_tokens: int
    new_tokens: int
    overlapped_sends: bool
    options: tuple[str, ...]
    bits: Mapping[str, int]
    kv_bytes_per_layer: int
    activation_bytes_per_token: int
    token_bytes: int
    devices: tuple[Device, ...]
    links: Mapping[tuple[int, int], Link]
    omega: Mapping[str, tuple[float, ...]]
    theta_ms: float
    quality_budget: float | None
    micro_batches: tuple[MicroBatches, ...]

    @classmethod
    def from_document(cls, document: Mapping[str, Any], path: str = "problem") -> "Problem":
        """Check ``document`` (a problem.json, with or without its schema header) and give the typed view.

        Raises ArtifactError with one message that names the key: wrong types, NaN, missing layers or micro-batch sizes, unknown
        or duplicate devices, missing links.
        """
        document = {"schema": "llmpq.problem", "version": 1, **document}
        artifacts.check(document, "problem", path)
        checker = _Checker(document, path)
        checker.run()
        objective, workload = document["objective"], document["workload"]
        names = {entry["name"]: index for index, entry in enumerate(document["devices"])}
        budget = objective.get("quality_budget")
        return cls(
            document=document,
            name=document["name"],
            layers=int(document["model"]["layers"]),
            requests=int(workload["requests"]),
            slots=int(workload["slots"]),
            prompt_tokens=int(workload["prompt_tokens"]),
            new_tokens=int(workload["new_tokens"]),
            overlapped_sends=document["overlapped_sends"],
            options=tuple(document["options"]),
            bits=_bits(document),
            kv_bytes_per_layer=int(document["kv_bytes_per_layer"]),
            activation_bytes_per_token=int(document["activation_bytes_per_token"]),
            token_bytes=int(document["token_bytes"]),
            devices=tuple(_device(entry) for entry in document["devices"]),
            links={
                (names[link["from"]], names[link["to"]]): Link(float(link["alpha_ms"]), float(link["bytes_per_ms"]))
                for link in document["links"]
            },
            omega={option: tuple(float(value) for value in document["omega"][option]) for option in document["options"]},
            theta_ms=float(objective.get("theta_ms", 0.0)),
            quality_budget=None if budget is None else float(budget),
            micro_batches=tuple(checker.micro_batches),
        )

    def payload_bytes(self, phase: str, size: int) -> int:
        """Bytes of one message from stage to stage for a micro-batch of ``size`` requests."""
        return size * self.activation_bytes_per_token * (self.prompt_tokens if phase == "prefill" else 1)

    @property
    def batches(self) -> int:
        """How many times a batch of ``slots`` requests runs, one after the other."""
        return self.requests // self.slots


def _part(entry: Mapping[str, Any]) -> Part:
    tables = {phase: {int(size): float(ms) for size, ms in entry[f"{phase}_ms"].items()} for phase in PHASES}
    return Part(int(entry["resident_bytes"]), int(entry.get("stored_bytes", 0)), tables)


def _device(entry: Mapping[str, Any]) -> Device:
    overhead = entry.get("overhead_ms", {})
    return Device(
        name=entry["name"],
        type=entry.get("type", entry["name"]),
        memory_bytes=int(entry["memory_bytes"]),
        options={name: _part(part) for name, part in entry["options"].items()},
        embedding=_part(entry["embedding"]),
        head=_part(entry["head"]),
        workspace_bytes={phase: {int(k): int(v) for k, v in entry["workspace_bytes"][phase].items()} for phase in PHASES},
        overhead_ms={phase: float(overhead.get(phase, 0.0)) for phase in PHASES},
    )


def _bits(document: Mapping[str, Any]) -> dict[str, int]:
    given = document.get("bits", {})
    found = {}
    for option in document["options"]:
        digits = re.search(r"\d+", option)
        found[option] = int(given[option]) if option in given else int(digits.group()) if digits else 0
    return found


class _Checker:
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
        self.check_micro_batches()
        self.check_links()
        for index in range(len(self.document["devices"])):
            self.check_device(index)

    def check_workload(self) -> None:
        workload = self.document["workload"]
        if workload["requests"] % workload["slots"]:
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
        for option in self.document.get("bits", {}):
            if option not in self.document["options"]:
                self.fail(f"bits.{option}", f"unknown option; options are {', '.join(self.document['options'])}")
        for option, bits in _bits(self.document).items():
            if bits == 0:
                self.fail("bits", f"option '{option}' has no number in its name: give its weight bits here")

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
        for a in names:
            for b in names:
                if a != b and (a, b) not in seen:
                    self.fail("links", f"no link {a} → {b}; every ordered pair of devices needs one")

    def check_device(self, index: int) -> None:
        device, where = self.document["devices"][index], f"devices[{index}]"
        for option in device["options"]:
            if option not in self.document["options"]:
                self.fail(f"{where}.options.{option}", f"unknown option; options are {', '.join(self.document['options'])}")
        needed = needed_sizes(self.micro_batches)
        tables = [(f"{where}.options.{name}", part) for name, part in device["options"].items()]
        tables += [(f"{where}.{end}", device[end]) for end in ("embedding", "head")]
        for phase in PHASES:
            for key, part in tables:
                self.check_sizes(f"{key}.{phase}_ms", part[f"{phase}_ms"], needed[phase])
            self.check_sizes(f"{where}.workspace_bytes.{phase}", device["workspace_bytes"][phase], needed[phase])

    def check_sizes(self, key: str, table: Mapping[str, float], needed: list[int]) -> None:
        missing = [size for size in needed if str(size) not in table]
        if missing:
            sizes = ", ".join(map(str, missing))
            self.fail(key, f"no entry for micro-batch size {sizes}; add it, or list the sizes to try under micro_batches")
        if any(not math.isfinite(value) for value in table.values()):
            self.fail(key, "holds a number that is not finite")
