"""How the report writes numbers and in which order it lists options."""

from itertools import pairwise

import pytest

from llmpq.report import format as text
from llmpq.report.palette import ink_on, option_colour


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"), (0, "0"), (1234.5, "1,230"), (999.6, "1,000"), (99.96, "100"), (9.999, "10.0"), (44.52, "44.5"), (0.012345, "0.0123"),
        (1, "1.00"), (-3.14159, "-3.14"), (0.00001234, "1.23e-05"), (123456789, "123,000,000"),
    ],
)  # fmt: skip
def test_three_significant_digits(value: float | None, expected: str) -> None:
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3.84, "+3.8 %"),
        (-3.84, "−3.8 %"),
        (0.01, "0.0 %"),
        (-0.04, "0.0 %"),
        (37.9, "+38 %"),
        (9.96, "+10 %"),
        (-15926.4, "−15,900 %"),
        (None, "–"),
    ],
)
def test_percent_has_a_sign_only_where_there_is_something(value: float | None, expected: str) -> None:
    assert text.percent(value, signed=True) == expected


@pytest.mark.parametrize(
    ("gap", "expected"), [(None, "–"), (0.0, "0 %"), (0.0008, "0.080 %"), (0.123, "12 %"), (1e-6, "< 0.001 %"), (1e-5, "0.0010 %")]
)
def test_a_small_gap_is_not_shown_as_none(gap: float | None, expected: str) -> None:
    assert text.gap_percent(gap) == expected


def test_options_run_from_many_bits_to_few_and_from_careful_to_coarse() -> None:
    assert text.by_bits(["4", "w8a8", "16", "3", "w8a8-outlier", "8", "4"]) == ["16", "8", "w8a8-outlier", "w8a8", "4", "3"]
    assert text.option_counts(["4", "16", "4"]) == "1 × 16, 2 × 4"


def test_layer_ranges_and_lists() -> None:
    assert (text.layer_range(3, 1), text.layer_range(0, 18)) == ("layer 3", "layers 0–17")
    assert (text.joined(["a"]), text.joined(["a", "b"]), text.joined(["a", "b", "c"])) == ("a", "a and b", "a, b and c")


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2, the quantity that survives colour blindness and grey printing."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_option_colours_get_lighter_with_every_step_down() -> None:
    ladder = [_luminance(option_colour(option)) for option in ["32", "16", "bf16", "8", "w8a8-outlier", "w8a8", "4"]]
    assert ladder == sorted(ladder)
    assert all(b / a > 1.2 for a, b in pairwise(ladder))


def test_text_on_every_option_colour_is_readable() -> None:
    for option in ["32", "16", "8", "w8a8-outlier", "w8a8", "4", "3", "2", "nf4", "unknown"]:
        light, dark = sorted([_luminance(option_colour(option)), _luminance(ink_on(option_colour(option)))], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, option
