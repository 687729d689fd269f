"""Greedy choice: the arg max, ties to the lowest id, and the lead over the runner-up."""

import torch

from llmpq.model.greedy import greedy


def test_ids_and_margins_match_topk_and_leave_the_logits() -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    ids, margins = greedy(logits)
    values, indices = torch.topk(before, 2, dim=1)
    assert torch.equal(ids, indices[:, 0])
    assert torch.equal(margins, values[:, 0] - values[:, 1])
    assert torch.equal(logits, before)


def test_a_tie_goes_to_the_lowest_id_with_no_margin() -> None:
    ids, margins = greedy(torch.tensor([[0.0, 3.0, 3.0, 1.0]]))
    assert ids.tolist() == [1]
    assert margins.tolist() == [0.0]


def test_logits_that_are_not_numbers_give_a_margin_that_is_not() -> None:
    _, margins = greedy(torch.tensor([[0.0, float("nan"), 1.0], [1.0, 2.0, 4.0]]))
    assert not torch.isfinite(margins[0])
    assert margins[1] == 2.0
