"""The planning problem: a checked, typed view of problem.json (docs/artifacts.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmpq import artifacts
from llmpq.plan.microbatch import MicroBatches, balanced
from llmpq.plan.options import kv_precision
from llmpq.plan.problem_check import ENDS, PHASES, ProblemChecker, cache_bytes, weight_bits

__all__ = ["ENDS", "PHASES", "Device", "Link", "Part", "Problem", "balanced"]


@dataclass(frozen=True)
class Part:
    """One decoder layer under one option, or an embedding or head: bytes, and ms per (phase, micro-batch size).

    ``shared_bytes``, of a head only: what of its bytes is the embedding's too where one stage has both at one option; None where the
    problem does not say.
    """

    resident_bytes: int
    stored_bytes: int
    ms: Mapping[str, Mapping[int, float]]
    shared_bytes: int | None = None


@dataclass(frozen=True)
class Device:
    """A place for one stage: a device, or a tensor-parallel group of several; ``uses`` are the physical devices behind it.

    ``embedding`` and ``head`` hold one part per end option that the device offers.
    """

    name: str
    type: str
    uses: frozenset[str]
    memory_bytes: int
    options: Mapping[str, Part]
    embedding: Mapping[str, Part]
    head: Mapping[str, Part]
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
    """A problem that passed every check: see ``from_document``.

    ``kv_bytes`` is the KV cache of one layer by option; ``end_omega`` the sensitivity by end ("embedding", "head") and end option;
    ``scheduler_ms`` is what lies between a token's return and the next call; ``links`` are by indices into ``devices``, and may lack pairs
    that cannot be in one order.
    """

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
    kv_bytes: Mapping[str, int]
    end_options: tuple[str, ...]
    end_omega: Mapping[str, Mapping[str, float]]
    end_bits: Mapping[str, int]
    tied_embeddings: bool
    activation_bytes_per_token: int
    token_bytes: int
    scheduler_ms: float
    devices: tuple[Device, ...]
    links: Mapping[tuple[int, int], Link]
    omega: Mapping[str, tuple[float, ...]]
    theta_ms: float
    quality_budget: float | None
    micro_batches: tuple[MicroBatches, ...]
    # Times of one choice of micro-batches, summed once (``candidate``).
    summed: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], path: str = "problem") -> "Problem":
        """Check ``document`` (a problem.json, with or without its schema header) and give the typed view.

        Raises ArtifactError with one message that names the key: wrong types, NaN, missing layers or micro-batch sizes, unknown
        or duplicate devices, missing links, options without sensitivity or cache bytes.
        """
        document = {"schema": "llmpq.problem", "version": 1, **document}
        artifacts.check(document, "problem", path)
        checker = ProblemChecker(document, path)
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
            bits=weight_bits(document["options"], document.get("bits", {})),
            kv_bytes={option: cache_bytes(document)[kv_precision(option)] for option in document["options"]},
            end_options=tuple(document["end_options"]),
            end_omega=_end_omega(document),
            end_bits=weight_bits(document["end_options"], document.get("bits", {})),
            tied_embeddings=document.get("tied_embeddings", False),
            activation_bytes_per_token=int(document["activation_bytes_per_token"]),
            token_bytes=int(document["token_bytes"]),
            scheduler_ms=float(document.get("scheduler_ms", 0.0)),
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

    def excludes(self, a: int, b: int) -> bool:
        """Whether entries ``a`` and ``b`` of ``devices`` need the same physical device, so that no order may hold both."""
        return not self.devices[a].uses.isdisjoint(self.devices[b].uses)

    @property
    def batches(self) -> float:
        """How many times a batch of ``slots`` requests runs, one after the other; a whole number under the barrier schedule."""
        return self.requests / self.slots


def _part(entry: Mapping[str, Any]) -> Part:
    tables = {phase: {int(size): float(ms) for size, ms in entry[f"{phase}_ms"].items()} for phase in PHASES}
    return Part(int(entry["resident_bytes"]), int(entry.get("stored_bytes", 0)), tables, entry.get("shared_bytes"))


def _device(entry: Mapping[str, Any]) -> Device:
    overhead = entry.get("overhead_ms", {})
    return Device(
        name=entry["name"],
        type=entry.get("type", entry["name"]),
        uses=frozenset(entry.get("uses", [entry["name"]])),
        memory_bytes=int(entry["memory_bytes"]),
        options={name: _part(part) for name, part in entry["options"].items()},
        embedding={name: _part(part) for name, part in entry["embedding"].items()},
        head={name: _part(part) for name, part in entry["head"].items()},
        workspace_bytes={phase: {int(k): int(v) for k, v in entry["workspace_bytes"][phase].items()} for phase in PHASES},
        overhead_ms={phase: float(overhead.get(phase, 0.0)) for phase in PHASES},
    )


def _end_omega(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    given = document.get("end_omega", {})
    return {end: {option: float(given.get(end, {}).get(option, 0.0)) for option in document["end_options"]} for end in ENDS}
