"""Both schedules on one stage, in this process: any micro-batches give each request its own greedy tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serve_cases
import torch

from llmpq.emulation import Emulator
from llmpq.errors import ServeError
from llmpq.model.sampling import draw, sample
from llmpq.model.stage import StageModel
from llmpq.serve.continuous import ContinuousDriver
from llmpq.serve.driver import Driver
from llmpq.serve.pipeline import Pipeline
from llmpq.serve.stage import Stage
from llmpq.serve.transport import Header

LENGTHS, LIMITS = [5, 9, 17, 12, 3, 30, 21, 8, 1, 26], [4, 12, 12, 3, 1, 7, 12, 2, 12, 5]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> StageModel:
    options = ["32"] * serve_cases.LAYERS
    return StageModel.load(tiny_checkpoint, None, first_layer=0, options=options, embedding="32", head="32")


@pytest.fixture(scope="module")
def generated(tiny_checkpoint: Path) -> dict[str, list[int]]:
    """What transformers generates for each request alone."""
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokens = {}
    for request in serve_cases.requests(LENGTHS, LIMITS):
        prompt = torch.tensor([request["prompt_tokens"]])
        found = reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request["max_new_tokens"],
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens[request["id"]] = found[0, prompt.shape[1] :].tolist()
    return tokens


def drive(
    model: StageModel,
    requests: Sequence[dict[str, Any]],
    sizes: tuple[int, int],
    slots: int,
    ends: Sequence[int] = (),
    capacity: int = 0,
    kind: type[Driver] = Driver,
) -> tuple[dict[str, Any], Stage, list[list[str]]]:
    """Serve the requests; returns records by id, the stage, and the ids of each report of finished requests."""
    records: dict[str, Any] = {}
    reports: list[list[str]] = []

    def finished(rows: list[dict[str, Any]]) -> None:
        reports.append([row["id"] for row in rows])
        for row in rows:
            assert row["id"] not in records
            records[row["id"]] = row

    capacity = capacity or max(len(request["prompt_tokens"]) + request["max_new_tokens"] for request in requests)
    with torch.inference_mode():
        stage = Stage(model, model.new_cache(slots, capacity), Emulator())
        driver = kind(Pipeline(stage, None, None), slots=slots, sizes=sizes, ends=ends, finished=finished, progress=lambda *_: None)
        driver.warm_up(requests)
        assert stage.timeline.calls == []
        driver.serve(requests)
    assert driver.clock.tokens == sum(len(row["tokens"]) for row in records.values())
    return records, stage, reports


@pytest.mark.parametrize("kind", [Driver, ContinuousDriver])
@pytest.mark.parametrize(
    ("sizes", "slots"), [((1, 1), 10), ((2, 3), 10), ((10, 10), 10), ((3, 7), 10), ((2, 4), 4), ((4, 6), 7), ((1, 3), 1)]
)
def test_ragged_requests_get_the_tokens_of_transformers(
    model: StageModel, generated: dict[str, list[int]], sizes: tuple[int, int], slots: int, kind: type[Driver]
) -> None:
    own = (min(sizes[0], slots), min(sizes[1], slots))
    records, _, _ = drive(model, serve_cases.requests(LENGTHS, LIMITS), own, slots, kind=kind)
    assert {name: row["tokens"] for name, row in records.items()} == generated
    assert {row["finish_reason"] for row in records.values()} == {"length"}


def test_calls_are_the_schedules(model: StageModel) -> None:
    requests = serve_cases.requests([6] * 7, 5)
    _, stage, _ = drive(model, requests, (2, 3), 7)
    calls = [(call.phase, call.micro_batch, call.step, call.rows, call.tokens) for call in stage.timeline.calls]
    prefills = [(0, 2), (0, 1), (1, 2), (2, 2)]  # 3, 2 and 2 rows in chunks of at most 2
    assert calls[:4] == [("prefill", batch, 0, rows, 6) for batch, rows in prefills]
    assert calls[4:] == [("decode", batch, step, rows, 1) for step in range(1, 5) for batch, rows in ((0, 3), (1, 2), (2, 2))]


@pytest.mark.parametrize("kind", [Driver, ContinuousDriver])
def test_an_end_token_finishes_a_row_and_the_rest_go_on(model: StageModel, generated: dict[str, list[int]], kind: type[Driver]) -> None:
    end = generated["r2"][4]
    expected = {name: tokens[: tokens.index(end) + 1] if end in tokens else tokens for name, tokens in generated.items()}
    records, _, reports = drive(model, serve_cases.requests(LENGTHS, LIMITS), (2, 3), 10, ends=[end], kind=kind)
    assert {name: row["tokens"] for name, row in records.items()} == expected
    assert records["r2"]["finish_reason"] == "eos"
    assert {name for name, row in records.items() if row["finish_reason"] == "eos"} == {
        name for name in expected if expected[name][-1] == end
    }
    assert len(reports) > 3  # told as they finish, not at the end


def test_a_micro_batch_whose_rows_have_all_finished_is_not_computed_any_more(model: StageModel) -> None:
    requests = serve_cases.requests([6] * 4, [2, 2, 9, 3])
    _, stage, reports = drive(model, requests, (2, 2), 4)
    decodes = [(call.micro_batch, call.step) for call in stage.timeline.calls if call.phase == "decode"]
    assert decodes == [(0, 1), (1, 1), *((1, step) for step in range(2, 9))]
    assert reports == [["r0", "r1"], ["r3"], ["r2"]]


def test_a_finished_row_never_runs_out_of_the_cache(model: StageModel) -> None:
    """Its prompt fills the cache up to its own few tokens, while its neighbour generates many."""
    requests = serve_cases.requests([30, 4], [2, 28])
    records, _, _ = drive(model, requests, (2, 2), 2, capacity=32)
    alone, _, _ = drive(model, requests[1:], (1, 1), 1, capacity=32)
    assert records["r1"]["tokens"] == alone["r1"]["tokens"]
    assert len(records["r0"]["tokens"]) == 2


def test_a_finished_sequences_slot_goes_to_a_waiting_request(model: StageModel) -> None:
    """Two slots, one request of 9 tokens and four of 3: the others pass through the second slot while the first is busy."""
    requests = serve_cases.requests([6] * 5, [9, 3, 3, 3, 3])
    records, stage, reports = drive(model, requests, (1, 2), 2, kind=ContinuousDriver)
    assert [len(records[f"r{index}"]["tokens"]) for index in range(5)] == [9, 3, 3, 3, 3]
    calls = [call.phase for call in stage.timeline.calls]
    assert calls.count("prefill") == 5
    assert calls.count("decode") == 10  # the barrier needs 8 + 2 + 2, in turn with one row
    assert reports == [["r1"], ["r2"], ["r0", "r3"], ["r4"]]


def test_the_continuous_schedule_never_writes_into_a_neighbours_cache(model: StageModel) -> None:
    """A slot that was used before, and one whose prompt came in beside the others' decode, give what a fresh one gives."""
    requests = serve_cases.requests([30, 4, 17, 9, 2, 26, 11], [2, 28, 3, 14, 1, 5, 9])
    records, _, _ = drive(model, requests, (2, 3), 3, capacity=33, kind=ContinuousDriver)
    for request in requests:
        alone, _, _ = drive(model, [request], (1, 1), 1, capacity=33)
        assert records[request["id"]]["tokens"] == alone[request["id"]]["tokens"]


def test_the_least_margin_and_its_token_are_recorded(model: StageModel) -> None:
    requests = serve_cases.requests([6, 11], [8, 3])
    records, _, _ = drive(model, requests, (2, 2), 2)
    for request in requests:
        row = records[request["id"]]
        sequence = torch.tensor([request["prompt_tokens"] + row["tokens"]])
        best = model.logits(sequence)[0, len(request["prompt_tokens"]) - 1 : -1].topk(2).values
        margins = best[:, 0] - best[:, 1]
        assert row["margins"] == pytest.approx(margins.tolist(), abs=1e-4)
        assert row["min_margin_token"] == int(margins.argmin())
        assert row["min_margin"] == pytest.approx(float(margins.min()), abs=1e-4)


def test_logits_that_are_not_numbers_are_an_error(tiny_checkpoint: Path) -> None:
    options = ["32"] * serve_cases.LAYERS
    broken = StageModel.load(tiny_checkpoint, None, first_layer=0, options=options, embedding="32", head="32")
    broken.layers[2].mlp_norm.weight.fill_(float("nan"))
    with pytest.raises(ServeError, match="request r0: the logits are not finite"):
        drive(broken, serve_cases.requests([4], 2), (1, 1), 1)
    sampled = [{**request, "sampling": {"temperature": 1.0, "top_p": 0.9, "seed": 1}} for request in serve_cases.requests([4], 3)]
    with pytest.raises(ServeError, match="request r0: the logits are not finite"):
        drive(broken, sampled, (1, 1), 1)


@pytest.mark.parametrize("kind", [Driver, ContinuousDriver])
def test_each_token_is_drawn_for_its_own_position(model: StageModel, kind: type[Driver]) -> None:
    requests = [
        {**request, "sampling": {"temperature": 1.3, "top_p": 0.95, "seed": 5 + number}}
        for number, request in enumerate(serve_cases.requests([5, 9, 3], [6, 4, 7]))
    ]
    records, _, _ = drive(model, requests, (2, 2), 2, kind=kind)
    for request in requests:
        sequence, how = list(request["prompt_tokens"]), request["sampling"]
        for token in records[request["id"]]["tokens"]:
            logits = model.logits(torch.tensor([sequence]))[0, -1:].numpy()
            values = (np.array([value]) for value in (how["temperature"], how["top_p"], draw(how["seed"], len(sequence))))
            assert token == int(sample(logits, *values)[0])
            sequence.append(token)


def test_progress_is_told_after_every_chunk_of_prefill(model: StageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpq.serve.driver.PROGRESS_S", 0.0)
    told: list[tuple[int, int]] = []
    requests = serve_cases.requests([6] * 5, 2)
    with torch.inference_mode():
        stage = Stage(model, model.new_cache(5, 8), Emulator())
        driver = Driver(
            Pipeline(stage, None, None), slots=5, sizes=(2, 5), ends=(), finished=lambda _: None, progress=lambda *row: told.append(row)
        )
        driver.serve(requests)
    assert told[:3] == [(2, 0), (4, 0), (5, 0)]
    assert told[-1] == (5, 10)


@pytest.mark.parametrize("kind", [Driver, ContinuousDriver])
def test_each_shape_is_warmed_once_however_many_waves_there_are(model: StageModel, kind: type[Driver]) -> None:
    requests = serve_cases.requests(list(range(3, 15)), 2)
    ran: list[tuple[str, int]] = []
    with torch.inference_mode():
        stage = Stage(model, model.new_cache(2, 16), Emulator())
        pipeline = Pipeline(stage, None, None)
        submit = pipeline.submit

        def counted(header: Header, *given: torch.Tensor) -> None:
            ran.append((header.kind.name.lower(), header.rows))
            submit(header, *given)

        pipeline.submit = counted  # type: ignore[method-assign]
        driver = kind(pipeline, slots=2, sizes=(2, 2), ends=(), finished=lambda _: None, progress=lambda *_: None)
        driver.warm_up(requests)
    assert ran == [("prefill", 2), ("decode", 2)]
