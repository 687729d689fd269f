"""Stop strings: the text of a sequence as it grows, token by token, searched for the strings that end it."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
_UNFINISHED = "\ufffd"  # what a decoder shows for the first bytes of a character whose others are still to come

_PATIENCE = 32  # tokens that may bring no finished character: more are no character, and decoding all of them anew would grow with each


class StopWatch:
    """Watches one sequence for its stop strings.

    ``text`` is what is certain so far: a character that needs more tokens is held back, and nothing of a stop string or behind it is in it
    once ``push`` has said that one was found.
    """

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._longest = max(map(len, stops))
        self._tokens: list[int] = []
        self._context = 0  # tokens before this one no longer change how later ones are written
        self._done = 0  # tokens whose text is in ``text``
        self.text = ""

    def push(self, token: int) -> bool:
        """Add a token; whether the text now has a stop string. The earliest place counts where there are several."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._context : self._done])
        found = self._decode(self._tokens[self._context :])
        start = max(0, len(self.text) - self._longest + 1)  # a stop string may have begun in the text before
        text = self.text + found[len(known) :].rstrip(_UNFINISHED)
        places = [place for stop in self._stops if (place := text.find(stop, start)) >= 0]
        if places:
            self.text = text[: min(places)]
        elif len(self._tokens) - self._done > _PATIENCE or (len(found) > len(known) and not found.endswith(_UNFINISHED)):
            self._context, self._done, self.text = self._done, len(self._tokens), self.text + found[len(known) :]
        return bool(places)
