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
from llmpq.quant.bytes import End
from llmpq.quant.options import layer_option

STACK_LAYERS = 8  # copies of the layer in the stack that a decode call runs
PRELUDE_LAYERS = 2  # further copies, run and timed just before it
PREFILL_TOKENS = 512  # a prefill call runs as many layers as make at least this many tokens × layers: long prompts need no stack
POINT_SECONDS = 0.03  # per configured repeat: cheap points are repeated more often than that, dear ones less
MAX_REPEATS_FACTOR = 4
DEAR_SECONDS = 0.1  # calls longer than this vary little and are not repeated more than they must
MIN_REPEATS, MIN_DEAR_REPEATS = 7, 3
NO_OPTION = "-"  # the overhead rows belong to no weight option


@dataclass
class Point:
    """One shape of one part at one option, the call that runs it, and its samples in seconds of the emulated device.

    A short ``prelude`` of the same kind brings code and allocator back into the processor's caches, though not the weights of ``call``.
    What it takes beyond its layers is what a call costs whose predecessor was something else: in a pipeline, every call's.
    """

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
    prelude: Callable[[], Any] | None = None
    prelude_layers: int = 0
    prelude_samples: list[float] = field(default_factory=list)
    estimate_s: float = 0.0
    workspace_bytes: int = 0

    def repeats(self, configured: int) -> int:
        """How often to time this point, from what its first calls took."""
        wanted = round(POINT_SECONDS * configured / max(self.estimate_s, 1e-6))
        least = MIN_DEAR_REPEATS if self.estimate_s > DEAR_SECONDS else MIN_REPEATS
        return min(max(wanted, min(least, 2 * configured)), MAX_REPEATS_FACTOR * configured)


class Grid:
    """Builds the points of a profile: stages, caches and inputs for every shape."""

    def __init__(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        self.checkpoint, self.spec = checkpoint, checkpoint.spec
        self.sizes = sorted({int(size) for size in settings["micro_batches"]})
        self.prompts = sorted({int(size) for size in settings["prompt_tokens"]})
        self.contexts = sorted({int(size) for size in settings["contexts"]})
        self.capacity = max(self.prompts[-1], self.contexts[-1])
        self.cache = stack.empty_stage(checkpoint).new_cache(self.sizes[-1], self.capacity)
        self._caches: dict[str, tuple[StageCache, StageCache]] = {}
        random_state = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(self.sizes[-1], self.prompts[-1], self.spec.hidden, generator=random_state)
        self.ids = torch.randint(self.spec.vocab, (self.sizes[-1], self.prompts[-1]), generator=random_state)

    def layer_points(self, option: str) -> Iterator[Point]:
        """All shapes of a decoder layer at ``option``."""
        both = stack.layer_stack(self.checkpoint, option, STACK_LAYERS + PRELUDE_LAYERS)
        full, brief = stack.some_layers(both, 0, STACK_LAYERS), stack.some_layers(both, STACK_LAYERS, PRELUDE_LAYERS)
        cache, short_cache = self._layer_caches(layer_option(option).kv, full, brief)
        for size in self.sizes:
            for prompt in self.prompts:
                layers = min(math.ceil(PREFILL_TOKENS / (size * prompt)), STACK_LAYERS)
                stage = stack.some_layers(full, 0, layers)
                own = stage.new_cache(size, prompt)
                yield self._prefill("layer", option, stage, layers, size, prompt, self.hidden[:size, :prompt], own)
            for context in self.contexts:
                inputs = self.hidden[:size, 0]
                point = self._decode("layer", option, full, STACK_LAYERS, size, context, inputs, cache)
                point.prelude = self._decode("layer", option, brief, PRELUDE_LAYERS, size, context, inputs, short_cache).call
                point.prelude_layers = PRELUDE_LAYERS
                yield point

    def _layer_caches(self, kv: str, full: StageModel, brief: StageModel) -> tuple[StageCache, StageCache]:
        """One pair for all options that keep their caches alike; they never run at the same time."""
        if kv not in self._caches:
            self._caches[kv] = full.new_cache(self.sizes[-1], self.capacity), brief.new_cache(self.sizes[-1], self.capacity)
        return self._caches[kv]

    def end_points(self, end: End, option: str) -> Iterator[Point]:
        """All shapes of the embedding or the head at ``option``; neither looks at a context."""
        stage = stack.end_stage(self.checkpoint, end, option)
        inputs = self.ids if end == "embedding" else self.hidden
        for size in self.sizes:
            points = [self._prefill(end, option, stage, 1, size, prompt, inputs[:size, :prompt], self.cache) for prompt in self.prompts]
            points.append(self._decode(end, option, stage, 1, size, self.contexts[-1], inputs[:size, 0], self.cache))
            for point in points:
                # The head comes right after a layer and its weights fit no cache; the rows that the embedding reads are cold.
                point.prelude = point.call if end == "head" else None
                yield point

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
