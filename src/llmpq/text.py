"""Real text for calibration, prompts and perplexity, and its cutting into token windows that never overlap between the three."""

import itertools
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from llmpq import artifacts
from llmpq.benchmark_texts import BENCHMARK_TEXTS, benchmark_text
from llmpq.errors import ConfigError, LlmpqError
from llmpq.model.wheel import download_wheel, extract_member

# Test data of gensim: 96 articles of the English Wikipedia (CC BY-SA) and 300 news reports (the Lee background corpus). Read from the
# wheel, gensim is not installed.
_GENSIM_WHEEL = "gensim==4.4.0"
_WIKIPEDIA_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_WIKIPEDIA_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
_NEWS_MEMBER = "gensim/test/test_data/lee_background.cor"
_NEWS_SHA256 = "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"

# Characters taken for each token wanted: byte-level vocabularies average 3–5, code and rare scripts less than 3.
_CHARACTERS_PER_TOKEN = 8

_SPACE, _LONGEST_WORD = re.compile(r"\s"), 100


def prepare_text(name: str, out: str | Path, source: str | Path = "") -> Path:
    """Write the text ``name`` (one of TEXTS) to ``out`` as UTF-8; atomic.

    ``source``: a local copy of the original file of a benchmark text (llmpq.benchmark_texts), which else comes from the hub. Raises
    ConfigError for an unknown name, or a source where the text needs none.
    """
    if name not in TEXTS:
        raise ConfigError(f"unknown text '{name}'; known texts: {', '.join(sorted(TEXTS))}")
    if source and name not in BENCHMARK_TEXTS:
        raise ConfigError(f"text '{name}' comes from a package, not from {source}; texts with a source: {', '.join(BENCHMARK_TEXTS)}")
    out = Path(out)
    text = benchmark_text(name, source) if name in BENCHMARK_TEXTS else PACKAGED_TEXTS[name](out.parent)
    artifacts.write_text(out, text)
    print(f"prepare: {name}: {len(text):,} characters in {out}", file=sys.stderr, flush=True)
    return out


def _wikipedia(directory: Path) -> str:
    from llmpq.wikitext import articles

    with _from_gensim(directory, "wikipedia", _WIKIPEDIA_MEMBER, _WIKIPEDIA_SHA256) as dump:
        return "\n\n".join(f"{title}\n\n{body}" for title, body in articles(dump)) + "\n"


def _news(directory: Path) -> str:
    """One report a paragraph."""
    with _from_gensim(directory, "news", _NEWS_MEMBER, _NEWS_SHA256) as reports:
        lines = reports.read_text(encoding="ascii").splitlines()
        return "\n\n".join(line.strip() for line in lines if line.strip()) + "\n"


@contextmanager
def _from_gensim(directory: Path, name: str, member: str, sha256: str) -> Iterator[Path]:
    """A member of gensim's wheel as a file, gone afterwards."""
    scratch = directory / f".{name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        print(f"prepare: downloading {_GENSIM_WHEEL} with pip (its test data is the text)", file=sys.stderr, flush=True)
        extracted = scratch / "member"
        extract_member(download_wheel(_GENSIM_WHEEL, scratch), member, extracted, sha256)
        yield extracted
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _python_docs(directory: Path) -> str:
    """The language reference as the running Python's help() has it (differs slightly between Python versions)."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


PACKAGED_TEXTS: Mapping[str, Callable[[Path], str]] = {"wikipedia": _wikipedia, "news": _news, "python-docs": _python_docs}
TEXTS = (*PACKAGED_TEXTS, *BENCHMARK_TEXTS)


def read_region(path: str | Path, region: Sequence[float]) -> str:
    """The characters of a text file from fraction ``region[0]`` up to ``region[1]`` of its length, both moved on to where a word starts."""
    first, last = region
    if not 0 <= first < last <= 1:
        raise ConfigError(f"region {list(region)} of {path}: expected two fractions with 0 <= from < to <= 1")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LlmpqError(f"{path}: no such text; prepare it first (llmpq prepare --text {Path(path).stem})") from None
    except UnicodeDecodeError as error:
        raise LlmpqError(f"{path}: not text in UTF-8 (byte {error.start:,}); convert it, or prepare it again") from None
    except OSError as error:
        raise LlmpqError(f"{path}: cannot be read: {error.strerror}; give a text file") from None
    return text[_word_start(text, int(first * len(text))) : _word_start(text, int(last * len(text)))]


def token_windows(
    tokenizer: Tokenizer, path: str | Path, region: Sequence[float], *, windows: int, tokens: int, seed: int | None = None
) -> list[list[int]]:
    """``windows`` stretches of ``tokens`` token ids each from a region of a text, never overlapping.

    The region is divided into equal parts, one for each window; without a seed a window starts where its part does, with one at a
    random place within it. Windows start at a word. Raises ConfigError when the region is too short.
    """
    text, draw = read_region(path, region), random.Random(seed)
    wanted = tokens * _CHARACTERS_PER_TOKEN
    edges = [_word_start(text, number * len(text) // max(windows, 1)) for number in range(windows + 1)]
    found = []
    for begin, end in itertools.pairwise(edges):
        start = begin if seed is None else _word_start(text, draw.randint(begin, max(begin, end - wanted)))
        ids = _encoded(tokenizer, text[start : min(start + wanted, end)])
        if len(ids) < tokens:  # an unlucky place near the end, or words longer than most: all of the part
            ids = _encoded(tokenizer, text[begin:end])
        if len(ids) < tokens:
            raise ConfigError(
                f"{path}: region {list(region)} ({len(text):,} characters) is too short for {windows} windows of {tokens} tokens; "
                "widen the region or ask for fewer or shorter windows"
            )
        found.append(ids[:tokens])
    return found


def scored_windows(
    tokenizer: Tokenizer, path: str | Path, region: Sequence[float], *, windows: int | None, tokens: int, stride: int | None = None
) -> list[list[int]]:
    """Windows of ``tokens`` token ids to take perplexity on: ``windows`` of them spread evenly (token_windows), or with None all.

    All: the region is encoded as one stretch, and a window of ``tokens`` begins every ``stride`` of them (None: every window, side by
    side, as the papers on GPTQ do); what is left at the end is not used. Raises ConfigError when the region is too short for one.
    """
    if windows is not None:
        return token_windows(tokenizer, path, region, windows=windows, tokens=tokens)
    ids = _encoded(tokenizer, read_region(path, region))
    if len(ids) < tokens:
        raise ConfigError(f"{path}: region {list(region)} has {len(ids)} tokens, fewer than a window of {tokens}; ask for shorter windows")
    return [ids[start : start + tokens] for start in range(0, len(ids) - tokens + 1, stride or tokens)]


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _word_start(text: str, at: int) -> int:
    """The first position from ``at`` on where a word starts; ``at`` itself where none is near (text without spaces)."""
    if at == 0 or text[at - 1].isspace():
        return at
    space = _SPACE.search(text, at, at + _LONGEST_WORD)
    return space.end() if space else at
