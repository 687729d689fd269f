"""Texts and their cutting: mark-up goes, prose stays; windows never overlap and are drawn the same each time."""

import bz2
import hashlib
import itertools
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmpq.errors import LlmpqError
from llmpq.text import prepare_text, read_region, scored_windows, token_windows
from llmpq.wikitext import articles, plain

WORDS = 4000


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Word n of the text is token n."""
    made = Tokenizer(models.WordLevel({f"w{n:04d}": n for n in range(WORDS)}, unk_token="w0000"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"w{n:04d}" for n in range(WORDS)))
    return path


def test_windows_are_stretches_of_the_region_and_never_overlap(tokenizer: Tokenizer, text: Path) -> None:
    windows = token_windows(tokenizer, text, (0.25, 0.75), windows=10, tokens=50, seed=3)
    for window in windows:
        assert window == list(range(window[0], window[0] + 50))
    assert windows[0][0] >= 0.25 * WORDS
    assert windows[-1][-1] < 0.75 * WORDS
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(windows))


def test_regions_that_meet_share_no_token(tokenizer: Tokenizer, text: Path) -> None:
    regions = [(0.0, 0.3), (0.3, 0.5), (0.5, 1.0)]
    seen = [{token for window in token_windows(tokenizer, text, region, windows=4, tokens=100) for token in window} for region in regions]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]


def test_a_seed_fixes_the_windows_and_none_starts_them_evenly(tokenizer: Tokenizer, text: Path) -> None:
    drawn = [token_windows(tokenizer, text, (0, 1), windows=5, tokens=20, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    starts = [window[0] for window in token_windows(tokenizer, text, (0, 1), windows=4, tokens=20)]
    assert starts == pytest.approx([0, 1000, 2000, 3000], abs=2)


def test_all_windows_of_a_region_lie_a_stride_apart(tokenizer: Tokenizer, text: Path) -> None:
    """300 words: three windows of 100 side by side; 40 apart, the last one that is whole begins at 200."""
    assert scored_windows(tokenizer, text, (0, 300 / WORDS), windows=None, tokens=100) == [list(range(n, n + 100)) for n in (0, 100, 200)]
    apart = scored_windows(tokenizer, text, (0, 300 / WORDS), windows=None, tokens=100, stride=40)
    assert apart == [list(range(n, n + 100)) for n in (0, 40, 80, 120, 160, 200)]
    spread = token_windows(tokenizer, text, (0, 1), windows=3, tokens=20)
    assert scored_windows(tokenizer, text, (0, 1), windows=3, tokens=20, stride=5) == spread
    with pytest.raises(LlmpqError, match="has 300 tokens, fewer than a window of 301"):
        scored_windows(tokenizer, text, (0, 300 / WORDS), windows=None, tokens=301)


def test_text_of_many_tokens_still_fills_its_windows(tmp_path: Path) -> None:
    """One token a character: the first guess of characters suffices, and the last part has nothing to spare."""
    made = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate("abcd")}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    path = tmp_path / "letters.txt"
    path.write_text("abcd" * 25)
    assert token_windows(made, path, (0, 1), windows=4, tokens=25, seed=0) == [[n % 4 for n in range(k, k + 25)] for k in (0, 1, 2, 3)]


def test_a_region_too_short_or_upside_down_and_a_missing_text_are_refused(tokenizer: Tokenizer, text: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmpqError, match=r"region \[0.0, 0.01\] .* is too short for 2 windows of 50 tokens; widen the region"):
        token_windows(tokenizer, text, [0.0, 0.01], windows=2, tokens=50)
    with pytest.raises(LlmpqError, match="expected two fractions with 0 <= from < to <= 1"):
        read_region(text, (0.5, 0.2))
    with pytest.raises(LlmpqError, match=r"gone\.txt: no such text; prepare it first"):
        read_region(tmp_path / "gone.txt", (0, 1))
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(LlmpqError, match=r"folder: cannot be read: Is a directory"):
        read_region(tmp_path / "folder", (0, 1))
    with pytest.raises(LlmpqError, match=r"latin\.txt: not text in UTF-8 \(byte 3\)"):
        read_region(tmp_path / "latin.txt", (0, 1))
    with pytest.raises(LlmpqError, match="unknown text 'bible'; known texts: c4, news, ptb, python-docs, wikipedia, wikitext2"):
        prepare_text("bible", tmp_path / "bible.txt")


def test_python_docs_are_written_whole(tmp_path: Path) -> None:
    prepare_text("python-docs", tmp_path / "docs.txt")
    text = (tmp_path / "docs.txt").read_text()
    assert len(text) > 300_000
    assert 'The "assert" statement' in text


@pytest.mark.real_model
def test_the_news_are_the_same_text_everywhere(real_model_dir: Path) -> None:
    text = (real_model_dir.parents[2] / "texts" / "news.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "a08506e0be9c6061ea8671bdab4991b270ad26b97836ec7f2042e0a957c3aaad"
    assert text.startswith(b"Hundreds of people have been forced to vacate")
    assert text.count(b"\n\n") == 299


MARKUP = """{{Infobox|a={{nested|b}}}}'''Albedo''' is the [[reflection|reflected]]
part of [[light]] ({{lang|la|albus}}, white).<ref name="a">x</ref>

[[File:Earth.jpg|thumb|The [[Earth]] from [[space|above]]]]
== History ==
* First &amp; best<!-- hidden --> in 1760 [http://example.org a source].
{| class="wikitable"
| cell {{x|y}}
|}
It ends<ref name="b"/> here.

== References ==
{{reflist}}
"""


def test_markup_goes_and_prose_stays() -> None:
    expected = "Albedo is the reflected\npart of light (white).\n\nHistory\n\nFirst & best in 1760 a source.\n\nIt ends here."
    assert plain(MARKUP) == expected


def test_articles_leave_redirects_and_other_namespaces_out(tmp_path: Path) -> None:
    pages = [("Kept", "0", "", "Some ''text''."), ("Moved", "0", '<redirect title="Kept"/>', "x"), ("Talk:Kept", "1", "", "x")]
    body = "".join(
        f"<page><title>{title}</title><ns>{space}</ns>{extra}<revision><text>{text}</text></revision></page>"
        for title, space, extra, text in pages
    )
    dump = tmp_path / "dump.xml.bz2"
    dump.write_bytes(bz2.compress(f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{body}</mediawiki>'.encode()))
    assert list(articles(dump)) == [("Kept", "Some text.")]
