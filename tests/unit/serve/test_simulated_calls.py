"""The simulation makes the very calls that the runtime makes: same order, micro-batches, rows, padded prompts and contexts."""

from pathlib import Path
from typing import Any

import pytest
import serve_cases
import torch

from llmpq.emulation import Emulator
from llmpq.model.stage import StageModel
from llmpq.serve.continuous import ContinuousDriver
from llmpq.serve.driver import Driver
from llmpq.serve.pipeline import Pipeline
from llmpq.serve.stage import Stage
from llmpq.serve.transport import Header, Kind
from llmpq.simulate.costs import Route
from llmpq.simulate.run import Request, simulate_requests

LENGTHS, LIMITS = [5, 9, 17, 12, 3, 30, 21, 8, 1, 26, 11], [4, 12, 12, 3, 1, 7, 12, 2, 12, 5, 6]


class Recorded(Pipeline):
    """A pipeline that notes what is submitted to it: phase, micro-batch, rows, and the length that the call's cost goes by."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, None, None)
        self.calls: list[tuple[str, int, int, int]] = []

    def submit(self, header: Header, integers: torch.Tensor, ids: torch.Tensor) -> None:
        if header.measured:
            prefill = header.kind is Kind.PREFILL
            length = header.tokens if prefill else int(integers.max()) + 1
            self.calls.append(("prefill" if prefill else "decode", header.micro_batch, header.rows, length))
        super().submit(header, integers, ids)


class Noted:
    """Costs that note what they are asked for: a call's place in the order is that of its event."""

    overlapped_sends = True

    def route(self, phase: str, rows: int, length: int) -> Route:
        return Route((float(length),), (), 0.0)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> StageModel:
    options = ["32"] * serve_cases.LAYERS
    return StageModel.load(tiny_checkpoint, None, first_layer=0, options=options, embedding="32", head="32")


def served(model: StageModel, rows: list[dict[str, Any]], kind: type[Driver], slots: int, sizes: tuple[int, int], ends: list[int]) -> Any:
    records: dict[str, Any] = {}
    capacity = max(len(row["prompt_tokens"]) + row["max_new_tokens"] for row in rows)
    with torch.inference_mode():
        pipeline = Recorded(Stage(model, model.new_cache(slots, capacity), Emulator()))
        driver = kind(
            pipeline,
            slots=slots,
            sizes=sizes,
            ends=ends,
            finished=lambda found: records.update((row["id"], row) for row in found),
            progress=lambda *_: None,
        )
        driver.warm_up(rows)
        driver.serve(rows)
    return records, pipeline.calls


@pytest.mark.parametrize(("kind", "schedule"), [(Driver, "barrier"), (ContinuousDriver, "continuous")])
@pytest.mark.parametrize(("sizes", "slots"), [((1, 1), 1), ((2, 3), 11), ((2, 3), 5), ((4, 4), 4), ((3, 7), 7)])
@pytest.mark.parametrize("stops", [False, True])
def test_the_calls_are_the_runtimes(
    model: StageModel, kind: type[Driver], schedule: str, sizes: tuple[int, int], slots: int, stops: bool
) -> None:
    rows = serve_cases.requests(LENGTHS, LIMITS)
    ends = list(range(0, serve_cases.VOCAB, 9)) if stops else []
    records, calls = served(model, rows, kind, slots, sizes, ends)
    requests = [Request(len(row["prompt_tokens"]), row["max_new_tokens"], len(records[row["id"]]["tokens"])) for row in rows]
    assert any(request.new_tokens < request.limit for request in requests) is stops
    found = simulate_requests(Noted(), requests, schedule=schedule, slots=slots, sizes=sizes, record=True)
    simulated = [(event.phase, event.micro_batch, event.rows, round(event.end_ms - event.start_ms)) for event in found.events]
    assert simulated == calls
    assert found.tokens == tuple(len(records[row["id"]]["tokens"]) for row in rows)
