"""The points of a profile: one shape of one part at one option, with the real call of a small stage that runs it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from llmpq.model.cache import StageCache
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.greedy import greedy
from llmpq.model.stage import StageModel
from llmpq.profile import stack

STACK_LAYERS = 8  # copies of the layer in the stack; a decode call runs them all
PREFILL_TOKENS = 512  # a prefill call runs as many layers as make at least this many tokens × layers: long prompts need no stack
POINT_SECONDS = 0.03  # per configured repeat: cheap points are repeated more often than that, dear ones less
MAX_REPEATS_FACTOR = 4
MIN_REPEATS = 3
NO_OPTION = "-"  # the overhead rows belong to no weight option


@dataclass
class Point:
    """One shape of one part at one option, the call that runs it, and its samples in seconds of the emulated device."""

    part: str
    phase: str
    option: str
    micro_batch: int
    length: int
    layers: int
    call: Callable[[], Any]
    input_bytes: int
    samples: list[float] = field(default_factory=list)
    bare_samples: list[float] = field(default_factory=list)  # overhead only: without what the sleep cost beyond its due
    estimate_s: float = 0.0
    workspace_bytes: int = 0

    def repeats(self, configured: int) -> int:
        """How often to time this point, from what its first calls took."""
        wanted = round(POINT_SECONDS * configured / max(self.estimate_s, 1e-6))
        return min(max(wanted, min(MIN_REPEATS, configured)), MAX_REPEATS_FACTOR * configured)


class Grid:
    """Builds the points of a profile: stages, caches and inputs for every shape."""

    def __init__(self, checkpoint: Checkpoint, settings: Mapping[str, Any], end_option: str) -> None:
        self.checkpoint, self.spec, self.end_option = checkpoint, checkpoint.spec, end_option
        self.sizes = sorted({int(size) for size in settings["micro_batches"]})
        self.prompts = sorted({int(size) for size in settings["prompt_tokens"]})
        self.contexts = sorted({int(size) for size in settings["contexts"]})
        self.capacity = max(self.prompts[-1], self.contexts[-1])
        self.layers = min(STACK_LAYERS, self.spec.layers)
        self.cache = stack.empty_stage(checkpoint).new_cache(self.sizes[-1], self.capacity)
        self.layer_cache: StageCache | None = None  # shared by the options
        random_state = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(self.sizes[-1], self.prompts[-1], self.spec.hidden, generator=random_state)
        self.ids = torch.randint(self.spec.vocab, (self.sizes[-1], self.prompts[-1]), generator=random_state)

    def layer_points(self, option: str) -> Iterator[Point]:
        """All shapes of a decoder layer at ``option``."""
        full = stack.layer_stack(self.checkpoint, option, self.layers)
        cache = self.layer_cache = self.layer_cache or full.new_cache(self.sizes[-1], self.capacity)
        for size in self.sizes:
            for prompt in self.prompts:
                layers = min(math.ceil(PREFILL_TOKENS / (size * prompt)), self.layers)
                stage = stack.first_layers(full, layers)
                own = stage.new_cache(size, prompt)
                yield self._prefill("layer", option, stage, layers, size, prompt, self.hidden[:size, :prompt], own)
            for context in self.contexts:
                yield self._decode("layer", option, full, self.layers, size, context, self.hidden[:size, 0], cache)

    def end_points(self, end: str) -> Iterator[Point]:
        """All shapes of the embedding or the head, which do not look at a context."""
        stage = stack.end_stage(self.checkpoint.directory, end, self.end_option)
        inputs = self.ids if end == "embedding" else self.hidden
        for size in self.sizes:
            for prompt in self.prompts:
                yield self._prefill(end, self.end_option, stage, 1, size, prompt, inputs[:size, :prompt], self.cache)
            yield self._decode(end, self.end_option, stage, 1, size, self.contexts[-1], inputs[:size, 0], self.cache)

    def overhead_points(self) -> Iterator[Point]:
        """The empty call at the grid's shapes."""
        stage = stack.empty_stage(self.checkpoint)
        for size in self.sizes:
            for prompt in self.prompts:
                yield self._prefill("overhead", NO_OPTION, stage, 1, size, prompt, self.hidden[:size, :prompt], self.cache)
            for context in self.contexts:
                yield self._decode("overhead", NO_OPTION, stage, 1, size, context, self.hidden[:size, 0], self.cache)

    def _prefill(
        self, part: str, option: str, stage: StageModel, layers: int, size: int, prompt: int, inputs: torch.Tensor, cache: StageCache
    ) -> Point:
        inputs, lengths, rows = inputs.contiguous(), torch.full((size,), prompt), slice(0, size)

        def call() -> Any:
            result = stage.prefill(inputs, cache, rows, lengths)
            return greedy(result) if part == "head" else result

        return Point(part, "prefill", option, size, prompt, layers, call, inputs.nbytes)

    def _decode(
        self, part: str, option: str, stage: StageModel, layers: int, size: int, context: int, inputs: torch.Tensor, cache: StageCache
    ) -> Point:
        inputs, positions, rows = inputs.contiguous(), torch.full((size,), context - 1), slice(0, size)

        def call() -> Any:
            result = stage.decode(inputs, cache, rows, positions)
            return greedy(result) if part == "head" else result

        return Point(part, "decode", option, size, context, layers, call, inputs.nbytes)
