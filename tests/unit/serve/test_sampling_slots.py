"""What is known of slots: told only where something changes, and the same for a request whatever slot and batch it is in."""

import torch

from llmpq.model.greedy import greedy
from llmpq.serve.sampling import SamplingNotes, SlotSampling

GREEDY = {"id": "g"}
WARM = {"id": "w", "sampling": {"temperature": 1.5, "top_p": 0.9, "seed": 2**63 - 1}}


def noted(notes: SamplingNotes, first_slot: int, *requests: dict) -> tuple[list, list] | None:
    found = notes.note(first_slot, requests)
    return None if found is None else (found[0].tolist(), [[round(value, 4) for value in row] for row in found[1].tolist()])


def test_nothing_is_told_while_all_are_greedy() -> None:
    notes = SamplingNotes()
    assert noted(notes, 0, GREEDY, GREEDY) is None
    assert noted(notes, 1, GREEDY, WARM) == ([0, 2**63 - 1], [[0.0, 1.0], [1.5, 0.9]])
    assert noted(notes, 0, GREEDY, GREEDY) is None  # slot 2 is not among them


def test_a_slot_that_goes_back_to_greedy_is_told_once() -> None:
    notes = SamplingNotes()
    noted(notes, 0, WARM, GREEDY)
    assert noted(notes, 0, GREEDY, GREEDY) == ([0, 0], [[0.0, 1.0], [0.0, 1.0]])
    assert noted(notes, 0, GREEDY, GREEDY) is None


def assigned(first_slot: int, *requests: dict) -> SlotSampling:
    slots, note = SlotSampling(), SamplingNotes().note(first_slot, requests)
    if note is not None:
        slots.assign(first_slot, *note)
    return slots


def test_greedy_rows_among_others_are_untouched_and_margins_are_those_of_greedy() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    ids, margins = assigned(4, GREEDY, WARM, GREEDY).choose(logits.clone(), [4, 5, 6], torch.tensor([9, 9, 9]))
    best, best_margins = greedy(logits.clone())
    assert ids[[0, 2]].tolist() == best[[0, 2]].tolist()
    assert torch.equal(margins, best_margins)


def test_a_request_gets_the_same_tokens_in_any_slot_and_batch() -> None:
    row = torch.randn(50, generator=torch.Generator().manual_seed(2))
    positions = range(10, 60)
    alone = assigned(0, WARM)
    expected = [int(alone.choose(row[None].clone(), [0], torch.tensor([position]))[0]) for position in positions]
    assert len(set(expected)) > 5
    other = assigned(2, GREEDY, {**WARM, "sampling": {**WARM["sampling"], "seed": 1}}, WARM)
    found = [int(other.choose(torch.stack([-row, row, row]), range(2, 5), torch.tensor([3, 4, position]))[0][2]) for position in positions]
    assert found == expected


def test_a_slot_given_back_to_a_greedy_request_is_greedy() -> None:
    logits = torch.zeros(1, 50)
    slots = assigned(0, WARM)
    slots.assign(0, torch.zeros(1, dtype=torch.int64), torch.tensor([[0.0, 1.0]]))
    assert {int(slots.choose(logits, [0], torch.tensor([position]))[0]) for position in range(20)} == {0}
