"""Rotary tables, ALiBi slopes and the per-call contexts, against values worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmpq.model.positions import Positions, alibi_slopes, inverse_frequencies, rotary_tables, rotate
from llmpq.model.spec import ModelSpec, RopeSpec


def test_alibi_slopes_of_a_power_of_two_and_of_another_number() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # 6 heads: the 4-head series 2^-2, 2^-4 … and the odd members of the 8-head series 2^-1, 2^-3 fill up (Press et al., section 3)
    assert alibi_slopes(6).tolist() == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]


def test_rotation_turns_each_pair_by_position_times_frequency() -> None:
    cos, sin = rotary_tables(RopeSpec(theta=100.0), head_dim=4, positions=6)
    x = torch.tensor([1.0, 0.0, 0.0, 2.0])  # pairs are (0, 2) and (1, 3)
    turned = rotate(x, cos[5, 0], sin[5, 0])
    fast, slow = 5 * 1.0, 5 * 0.1
    expected = [math.cos(fast), -2 * math.sin(slow), math.sin(fast), 2 * math.cos(slow)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_scores_depend_on_the_distance_only() -> None:
    cos, sin = rotary_tables(RopeSpec(theta=10000.0), 16, 64)
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).unbind()

    def score(at: int, other: int) -> torch.Tensor:
        return rotate(query, cos[at, 0], sin[at, 0]) @ rotate(key, cos[other, 0], sin[other, 0])

    torch.testing.assert_close(score(9, 4), score(60, 55), atol=1e-4, rtol=0)
    assert abs(score(9, 4) - score(60, 50)) > 1e-2


def test_llama3_scaling_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    plain = inverse_frequencies(RopeSpec(theta=1e6), 64)
    scaled = inverse_frequencies(RopeSpec(1e6, "llama3", 8.0, 1.0, 4.0, 1024), 64)
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 1024 / 4, wavelength > 1024
    assert short.any()
    assert long.any()
    torch.testing.assert_close(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / 8)
    between = ~short & ~long
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


@pytest.fixture
def positions(tiny_llama_dir: Path) -> Positions:
    return Positions(ModelSpec.from_directory(tiny_llama_dir))


def test_equal_rows_need_no_mask_and_one_position(positions: Positions) -> None:
    context = positions.decode(torch.tensor([7, 7, 7]))
    assert (context.common, context.length, context.bias) == (7, 8, None)


def test_ragged_rows_hide_what_lies_behind_their_own_token(positions: Positions) -> None:
    context = positions.decode(torch.tensor([2, 0]))
    assert (context.common, context.length) == (None, 3)
    assert context.bias is not None
    assert context.bias.shape == (2, 1, 1, 3)
    assert context.bias[:, 0, 0].tolist() == [[0, 0, 0], [0, -math.inf, -math.inf]]


def test_alibi_bias_is_causal_and_grows_with_the_key_position(positions: Positions) -> None:
    spec = replace(positions.spec, positions="alibi", rope=None, kv_heads=4)
    bias = Positions(spec).prefill(3).bias
    assert bias is not None
    assert bias[0, 0].tolist() == [[0, -math.inf, -math.inf], [0, 0.25, -math.inf], [0, 0.25, 0.5]]
