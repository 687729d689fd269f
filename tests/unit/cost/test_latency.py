"""Latency fits: known coefficients come back, nothing is ever negative, more work never takes less time."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest

from llmpq import artifacts
from llmpq.cost.latency import TERMS, LatencyFit, LatencyModel, fit, fit_profile, fit_terms, held_out_error
from llmpq.errors import ArtifactError

SIZES, PROMPTS, CONTEXTS = (1, 2, 4, 8, 16), (32, 64, 128, 256), (32, 96, 160, 288)


def prefill_ms(v: float, s: float) -> float:
    return 0.002 * v * s + 3e-6 * v * s * s + 0.4


def decode_ms(v: float, t: float) -> float:
    return 0.0005 * v * t + 0.03 * v + 0.9


def stepped_ms(v: float, t: float) -> float:
    """A kernel that works on blocks of four rows: not linear in v."""
    return 1.0 * np.ceil(v / 4) + 0.001 * v * t


def points(function: Any, lengths: tuple[int, ...], noise: float = 0.0) -> list[tuple[float, float, float]]:
    random = np.random.default_rng(0)
    return [(v, x, float(function(v, x) * (1 + noise * random.standard_normal()))) for v, x in itertools.product(SIZES, lengths)]


def test_known_coefficients_are_recovered() -> None:
    found = fit_terms(points(prefill_ms, PROMPTS), TERMS["prefill"])
    assert found.keys() == {"v*s", "v*s^2", "1"}
    assert found["v*s"] == pytest.approx(0.002)
    assert found["v*s^2"] == pytest.approx(3e-6)
    assert found["1"] == pytest.approx(0.4)
    found = fit_terms(points(decode_ms, CONTEXTS), TERMS["decode"])
    assert found == pytest.approx({"v*t": 0.0005, "v": 0.03, "1": 0.9})


@pytest.mark.parametrize("form", ["terms", "knots"])
@pytest.mark.parametrize("seed", range(20))
def test_never_negative_and_monotone_on_pure_noise(form: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    for phase, lengths in (("prefill", PROMPTS), ("decode", CONTEXTS)):
        noise = [(v, x, float(random.uniform(0.01, 10.0))) for v, x in itertools.product(SIZES, lengths)]
        model = fit("layer", phase, "16", form, noise)
        v_axis, length_axis = (1, 2, 3, 5, 8, 11, 16, 24, 64), (1, 16, 48, 100, 300, 2000)
        table = np.array([[model.predict(v, x) for x in length_axis] for v in v_axis])
        assert (table >= 0).all()
        assert (np.diff(table, axis=0) >= -1e-12).all()
        assert (np.diff(table, axis=1) >= -1e-12).all()


def test_unconstrained_least_squares_would_be_negative_here() -> None:
    """What non-negativity is for: time falls with the size by noise, and the plain fit predicts less than nothing beyond the grid."""
    falling = [(v, x, 2.0 - 0.1 * v) for v, x in itertools.product(SIZES, CONTEXTS)]
    design = np.array([[v * x, v, x, 1.0] for v, x, _ in falling])
    plain = np.linalg.lstsq(design, np.array([ms for _, _, ms in falling]), rcond=None)[0]
    assert plain @ np.array([64 * 100, 64, 100, 1.0]) < 0
    assert fit("layer", "decode", "16", "terms", falling).predict(64, 100) > 0


def test_knots_reproduce_the_grid_and_interpolate_between_sizes() -> None:
    model = fit("layer", "decode", "4", "knots", points(stepped_ms, CONTEXTS))
    for v, t, ms in points(stepped_ms, CONTEXTS):
        assert model.predict(v, t) == pytest.approx(ms, rel=1e-6)
    assert model.predict(6, 96) == pytest.approx((model.predict(4, 96) + model.predict(8, 96)) / 2)
    assert model.predict(32, 96) == pytest.approx(2 * model.predict(16, 96))


def test_held_out_error_leaves_out_whole_shapes() -> None:
    exact = points(decode_ms, CONTEXTS)
    assert held_out_error("layer", "decode", "16", "terms", exact) == pytest.approx(0, abs=1e-9)
    # One size is an outlier at every length: the fit that saw it would hide the error, the held-out one shows it in full.
    spoiled = [(v, t, ms * (3.0 if v == 4 else 1.0)) for v, t, ms in exact]
    knots = fit("layer", "decode", "16", "knots", spoiled)
    assert knots.predict(8, 96) > decode_ms(8, 96)  # the outlier is followed, and the cumulative maximum keeps the fit monotone
    others = [point for point in exact if point[0] != 4]
    alone = fit("layer", "decode", "16", "knots", others)
    assert abs(alone.predict(4, 96) / (3 * decode_ms(4, 96)) - 1) > 0.6
    assert held_out_error("layer", "decode", "16", "knots", spoiled) > 0.15


def profile_rows(option: str = "16", noise: float = 0.0) -> list[dict[str, Any]]:
    rows = []
    shapes = [("prefill", v, s, s, ms) for v, s, ms in points(prefill_ms, PROMPTS, noise)]
    shapes += [("decode", v, 1, t, ms) for v, t, ms in points(stepped_ms, CONTEXTS, noise)]
    for phase, v, tokens, context, ms in shapes:
        times = {"p10_ms": ms * 0.98, "p50_ms": ms, "p90_ms": ms * 1.1}
        shape = {"part": "layer", "phase": phase, "option": option, "micro_batch": v, "tokens": tokens, "context": context}
        rows.append({**shape, **times, "workspace_bytes": int(v * tokens * 100), "repeats": 5})
    return rows


def profile_document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "m", "device": "cpu-fast", "kind": "cpu", "slowdown": 1.0, "threads": 1, "rows": rows}
    document = {"schema": "llmpq.profile", "version": 1, "provenance": {}, **body}
    artifacts.check(document, "profile")
    return document


def test_the_form_with_the_smaller_held_out_error_is_kept() -> None:
    body = fit_profile(profile_document(profile_rows()))
    artifacts.check({"schema": "llmpq.cost", "version": 1, "provenance": {}, **body}, "cost")
    forms = {row["phase"]: row["form"] for row in body["fits"]}
    assert forms == {"prefill": "terms", "decode": "knots"}
    for row in body["fits"]:
        assert row["heldout_mape"] == min(row["heldout_mape_by_form"].values())
    model = LatencyModel(body)
    assert model.predict("layer", "prefill", "16", 8, 128) == pytest.approx(prefill_ms(8, 128))
    assert model.predict("layer", "decode", "16", 8, 96) == pytest.approx(stepped_ms(8, 96), rel=1e-4)
    assert model.options() == ["16"]
    assert model.overhead("prefill", 4, 64) == 0.0


def test_a_fit_that_misses_held_out_shapes_is_degraded_and_then_refused() -> None:
    assert not fit_profile(profile_document(profile_rows(noise=0.02)))["degraded"]
    body = fit_profile(profile_document(profile_rows(noise=0.15)))
    assert body["degraded"]
    assert "option 16" in body["notes"][0]
    random = np.random.default_rng(1)
    wild = [dict(row, p50_ms=row["p50_ms"] * float(random.uniform(0.2, 5.0))) for row in profile_rows()]
    with pytest.raises(ArtifactError, match=r"cpu-fast.*option 16 misses held-out shapes"):
        fit_profile(profile_document(wild))


def test_an_option_never_profiled_is_named() -> None:
    model = LatencyModel(fit_profile(profile_document(profile_rows())))
    with pytest.raises(ArtifactError, match=r"cpu-fast.*layer in decode for option 'w8a8'"):
        model.predict("layer", "decode", "w8a8", 1, 64)


def test_a_time_of_zero_is_refused() -> None:
    rows = copy.deepcopy(profile_rows())
    rows[0]["p50_ms"] = 0.0
    with pytest.raises(ArtifactError, match="cannot be fitted"):
        fit_profile(profile_document(rows))


def test_one_size_scales_with_the_micro_batch() -> None:
    model = LatencyFit("layer", "decode", "16", "knots", knots={4: {"1": 2.0}})
    assert model.predict(8, 100) == pytest.approx(4.0)
    assert model.predict(1, 100) == pytest.approx(2.0)
