"""vLLM's batching: small cases worked out by hand, and what must hold for any."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.schedule.vllm import VllmCall, VllmScheduler, call_tokens, run_calls


class Log:
    """Keeps what the schedule asks for."""

    def __init__(self) -> None:
        self.calls: list[VllmCall] = []
        self.under_way: list[VllmCall] = []
        self.most_under_way = 0
        self.done: list[int] = []

    def start(self, call: VllmCall) -> None:
        self.calls.append(call)
        self.under_way.append(call)
        self.most_under_way = max(self.most_under_way, len(self.under_way))

    def wait(self, call: VllmCall) -> None:
        assert self.under_way.pop(0) is call

    def finished(self, call: VllmCall, done: Sequence[int]) -> None:
        self.done.extend(done)


def run(sizes: Sequence[tuple[int, int]], slots: int, most: int, stages: int = 1) -> Log:
    log = Log()
    run_calls(VllmScheduler(sizes, slots, most), stages, log)
    return log


def shapes(log: Log) -> list[tuple[dict[int, int], int, int]]:
    return [(call.tokens, call.prompt_tokens, call.context) for call in log.calls]


def test_prompts_fill_a_call_and_are_cut_where_it_is_full() -> None:
    assert shapes(run([(3, 2), (4, 2)], slots=2, most=5)) == [({0: 3, 1: 2}, 5, 3), ({0: 1, 1: 2}, 2, 4), ({1: 1}, 0, 5)]


def test_a_place_goes_to_the_next_request_in_the_call_after_its_last_token() -> None:
    log = run([(2, 1), (2, 2), (2, 1)], slots=2, most=8)
    assert shapes(log) == [({0: 2, 1: 2}, 4, 2), ({1: 1, 2: 2}, 2, 3)]
    assert log.done == [0, 1, 2]


def test_two_stages_share_the_requests_between_two_calls() -> None:
    log = run([(2, 3)] * 4, slots=4, most=4, stages=2)
    assert [sorted(call.tokens) for call in log.calls] == [[0, 1], [2, 3]] * 3
    assert log.most_under_way == 2


def test_the_next_piece_of_a_prompt_goes_while_the_one_before_is_under_way() -> None:
    log = run([(6, 1)], slots=1, most=3, stages=2)
    assert [(call.tokens, call.complete) for call in log.calls] == [({0: 3}, ()), ({0: 3}, (0,))]
    assert log.most_under_way == 2


def test_a_call_has_a_token_for_every_slot_at_least() -> None:
    assert (call_tokens(2, 128, 32), call_tokens(1, 8, 32)) == (256, 32)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=12),
    slots=st.integers(1, 5),
    more=st.integers(0, 12),
    stages=st.integers(1, 4),
)
def test_every_request_gets_its_tokens_once_and_no_limit_is_exceeded(
    sizes: list[tuple[int, int]], slots: int, more: int, stages: int
) -> None:
    log = run(sizes, slots, slots + more, stages)
    computed: Counter[int] = Counter()
    for call in log.calls:
        assert 1 <= sum(call.tokens.values()) <= slots + more
        assert len(call.tokens) <= slots
        computed.update(call.tokens)
    # the last token is made, but never read
    assert computed == {number: prompt + new - 1 for number, (prompt, new) in enumerate(sizes)}
    assert sum(call.prompt_tokens for call in log.calls) == sum(prompt for prompt, _ in sizes)
    assert sum(len(call.complete) for call in log.calls) == sum(new for _, new in sizes)
    assert sorted(log.done) == list(range(len(sizes)))
    assert log.most_under_way <= stages
