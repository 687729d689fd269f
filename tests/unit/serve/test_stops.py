"""Stop strings are found wherever tokens cut them, and nothing of them or of half a character is in the text."""

from collections.abc import Sequence

import pytest

from llmpq.serve.stops import StopWatch


class Pieces:
    """Tokens that are pieces of bytes: what a byte-level tokenizer's decoder does with them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")


def watch(pieces: Sequence[bytes], *stops: str) -> tuple[int | None, str]:
    """The number of tokens after which a stop string was seen (None: never), and the text by then."""
    found = StopWatch(Pieces(pieces).decode, stops)
    for token in range(len(pieces)):
        if found.push(token):
            return token + 1, found.text
    return None, found.text


@pytest.mark.parametrize(
    ("pieces", "stops", "after", "text"),
    [
        ([b"one ", b"two ", b"END", b" three"], ["END"], 3, "one two "),
        ([b"one E", b"N", b"D three"], ["END"], 3, "one "),  # across borders, with more behind it
        ([b"onEND two"], ["END"], 1, "on"),
        ([b"EN", b"DEN", b"D"], ["DEND"], 3, "EN"),
        ([b"aab", b"aa", b"b"], ["abaab"], 3, "a"),  # begins anew inside a false start
        ([b"a\n", b"\nb"], ["\n\n"], 2, "a"),
        ([b"x", b"y", b"z"], ["zz", "yz", "xyz"], 3, ""),  # the earliest place of several
        ([b"x", b"y", b"z"], ["y", "xy"], 2, ""),
        ([b"caf\xc3", b"\xa9 noir"], ["é"], 2, "caf"),  # a character in two tokens
        ([b"\xf0", b"\x9f", b"\x98", b"\x80!"], ["😀"], 4, ""),
        ([b"a\xf0\x9f\x98\x80", b"b"], ["😀b"], 2, "a"),
        ([b"stop\xe2"], ["stop"], 1, ""),  # seen at once, before the character behind it is whole
        ([b"sto", b"p\xe2", b"\x82\xac"], ["stop"], 2, ""),
        ([b"one", b"two"], ["three"], None, "onetwo"),
        ([b"one\xe2", b"\x82"], ["three"], None, ""),  # held back
        ([b"a\xff", b"b", b"END"], ["END"], 3, "a\ufffdb"),  # a byte that never becomes a character
    ],
)
def test_the_text_ends_before_the_stop_string(pieces: list[bytes], stops: list[str], after: int | None, text: str) -> None:
    assert watch(pieces, *stops) == (after, text)


@pytest.mark.parametrize("cut", range(1, 12))
def test_any_cut_into_tokens_finds_the_same_place(cut: int) -> None:
    data = "naïve – 日本語 <|stop|> ✓".encode()
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    after, text = watch(pieces, "<|stop|>")
    assert text == "naïve – 日本語 "
    assert after == -(-(data.index(b"|>") + 2) // cut)


def test_tokens_without_text_change_nothing() -> None:
    assert watch([b"one ", b"", b"ST", b"", b"", b"OP"], "STOP") == (6, "one ")


def test_tokens_that_never_make_a_character_are_not_decoded_over_and_over() -> None:
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return "".join("a" if token else "\ufffd" for token in tokens)

    found = StopWatch(decode, ["ab"])
    for _ in range(500):
        assert not found.push(0)
    assert longest < 100
    assert not found.push(1)
    assert found.text.endswith("\ufffda")
