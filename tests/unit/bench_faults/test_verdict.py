"""The verdict counts what is lost, duplicated and wrong, and knows a near-tie."""

from typing import Any

import pytest

from llmpq.bench_faults.verdict import NEAR_TIE, Verdict, judge

TOKENS = {"a": [5, 6, 7], "b": [8], "c": [9, 9]}
MARGINS = {"a": [1.0, NEAR_TIE / 2, 1.0], "b": [1.0], "c": [1.0, 1.0]}


def rows(**tokens: list[int]) -> list[dict[str, Any]]:
    return [{"id": name, "tokens": found} for name, found in tokens.items()]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (rows(**TOKENS), Verdict(3, 0, 0, 0, 0)),
        ([], Verdict(3, 3, 0, 0, 0)),
        (rows(a=[5, 6, 7], c=[9, 9]), Verdict(3, 1, 0, 0, 0)),
        (rows(**TOKENS) + rows(b=[8]) * 2, Verdict(3, 0, 2, 0, 0)),
        (rows(**TOKENS) + rows(stranger=[1]), Verdict(3, 0, 0, 1, 0)),
        (rows(a=[5, 6, 7], b=[4], c=[9, 9]), Verdict(3, 0, 0, 1, 0)),
        (rows(a=[5, 0, 0], b=[8], c=[9, 9]), Verdict(3, 0, 0, 0, 1)),  # where two tokens were equally likely
        (rows(a=[0, 6, 7], b=[8], c=[9, 9]), Verdict(3, 0, 0, 1, 0)),  # before that
        (rows(a=[5, 6], b=[8], c=[9, 9]), Verdict(3, 0, 0, 1, 0)),  # cut short
        ([*rows(**TOKENS), {"id": "d", "line": 4, "error": {}}], Verdict(3, 0, 0, 0, 0)),  # refused, not served
    ],
)
def test_what_became_of_the_requests(results: list[dict[str, Any]], expected: Verdict) -> None:
    assert judge(results, TOKENS, MARGINS) == expected


def test_the_first_of_two_results_is_the_one_that_is_judged() -> None:
    assert judge(rows(**TOKENS) + rows(b=[4]), TOKENS, MARGINS) == Verdict(3, 0, 1, 0, 0)
