"""The floor, by hand on a tiny model; rates of this machine are plausible."""

import pytest

from llmpq.bench_serve.floor import Rates, call_work, floor_s
from llmpq.bench_serve.rates import measure_rates
from llmpq.model.spec import ModelSpec

# A layer: qkv 8 × 4, o 4 × 4, gate_up 12 × 4, down 4 × 6: 32 + 16 + 48 + 24 = 120 weights.
SPEC = ModelSpec(
    family="llama", layers=2, hidden=4, ffn=6, heads=2, kv_heads=1, head_dim=2, vocab=10, max_positions=64, norm="rms", norm_eps=1e-5,
    activation="silu", gated=True, positions="rope",
)  # fmt: skip
RATES = Rates({"32": 100.0, "16": 200.0, "bf16": 300.0, "8": 50.0, "w8a8": 400.0}, 1000.0)


def test_prefill_counts_every_token_in_layers_and_the_last_alone_in_the_head() -> None:
    work = call_work(SPEC, ["16", "8"], ("16", "w8a8"), rows=3, tokens=2, past=0)
    assert work.operations["16"] == 2 * 6 * 120
    assert work.operations["8"] == 2 * 6 * 120
    assert work.operations["w8a8"] == 2 * 3 * 10 * 4
    # two layers; a row of two tokens has 1 + 2 pairs, each 4 operations in 2 heads of 2
    assert work.operations["32"] == 2 * 3 * 3 * 4 * 4
    table, weights, cache, head = 6 * 4 * 2, 120 * 2 + 120 * 1, 2 * 3 * 2 * (2 * 1 * 2 * 2), 10 * 4 * 1
    assert work.moved == table + weights + cache + head


def test_decode_reads_the_whole_cache() -> None:
    work = call_work(SPEC, ["16", "16"], ("16", "16"), rows=3, tokens=1, past=5)
    assert work.operations["32"] == 2 * 3 * 6 * 4 * 4
    assert work.operations["16"] == 2 * (2 * 3 * 120) + 2 * 3 * 40
    assert work.moved == 3 * 4 * 2 + 2 * 240 + 2 * 3 * 6 * 8 + 80


def test_a_call_takes_its_arithmetic_or_its_bytes_whichever_is_longer() -> None:
    work = call_work(SPEC, ["16", "16"], ("16", "16"), rows=3, tokens=1, past=5)
    arithmetic, bytes_ = 576 / 100 + 1680 / 200, 872 / 1000
    assert work.seconds(RATES) == pytest.approx(arithmetic)
    assert work.seconds(Rates(RATES.operations, 10.0)) == pytest.approx(bytes_ * 100)


def test_an_option_has_the_rate_of_the_fastest_kernel_at_least_as_exact() -> None:
    assert [RATES.of(option) for option in ("32", "16", "bf16", "8", "w8a8", "w8a8-outlier")] == [100.0, 200.0, 300.0, 300.0, 400.0, 400.0]


def test_a_batch_is_its_waves_and_their_steps() -> None:
    sizes = {"prompt_tokens": 2, "new_tokens": 3}
    prefill, decode = floor_s(SPEC, ["16", "16"], ("16", "16"), RATES, requests=5, slots=3, **sizes)

    def seconds(rows: int, tokens: int, past: int) -> float:
        return call_work(SPEC, ["16", "16"], ("16", "16"), rows, tokens, past).seconds(RATES)

    assert prefill == pytest.approx(seconds(3, 2, 0) + seconds(2, 2, 0))
    assert decode == pytest.approx(sum(seconds(rows, 1, past) for rows in (3, 2) for past in (2, 3)))


def test_rates_are_measured_in_a_process_of_their_own() -> None:
    import os

    rates = measure_rates([min(os.sched_getaffinity(0))], shapes=((32, 64, 64),), seconds=0.01)
    assert set(rates.operations) == {"32", "16", "bf16", "8", "w8a8"}
    assert all(1e6 < rate < 1e14 for rate in rates.operations.values())
    assert 1e7 < rates.bandwidth < 1e13
