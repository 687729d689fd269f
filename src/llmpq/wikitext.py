"""Readable text out of a MediaWiki dump: articles only, mark-up stripped with a few rules (no full parser: prose is what is wanted)."""

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_DROPPED = re.compile(
    r"<!--.*?-->|<ref[^<>]*/>|<(ref|math|gallery|timeline|imagemap|table|pre|source|syntaxhighlight|code|score)\b[^<>]*>.*?</\1>",
    re.DOTALL | re.IGNORECASE,
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|[^{}]*?\|\}", re.DOTALL)
_MEDIA_LINK = re.compile(r"\[\[\s*(?:file|image|category|media)\s*:[^\[\]]*\]\]|\[\[[a-z\-]{2,12}:[^\[\]|]*\]\]", re.IGNORECASE)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_EXTERNAL = re.compile(r"\[(?:https?|ftp):\S+(?:\s+([^\]]*))?\]|(?:https?|ftp)://\S+")
_HEADING = re.compile(r"^(=+)\s*(.*?)\s*\1\s*$", re.MULTILINE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_EMPTY_BRACKETS = re.compile(r"\s*\((?:[\s,;:]|\bor\b)*\)")
# Punctuation left alone where a template (a foreign word, a pronunciation) stood.
_DANGLING = re.compile(r"\s+([,;)])|(?<=\()[,;\s]+")
# What follows these headings is lists of references and links, not prose.
_APPENDIX = re.compile(
    r"^(=+)\s*(?:references|external links|see also|further reading|notes|bibliography|footnotes|sources)\s*\1\s*$.*", re.M | re.S | re.I
)


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """(title, plain text) of every article of a bz2 dump, redirects and other namespaces left out, in the dump's order."""
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if not page.tag.endswith("}page"):
                continue
            space = page.tag.removesuffix("page")
            if page.findtext(f"{space}ns") == "0" and page.find(f"{space}redirect") is None:
                yield page.findtext(f"{space}title", ""), plain(page.findtext(f"{space}revision/{space}text", ""))
            page.clear()


def plain(markup: str) -> str:
    """Wiki mark-up → paragraphs separated by blank lines, headings on lines of their own."""
    text = _APPENDIX.sub("", markup)
    text = _DROPPED.sub("", html.unescape(text))
    text = _until_stable(_TEMPLATE, "", text)
    text = _until_stable(_TABLE, "", text)
    text = _LINK.sub(r"\1", _until_stable_links(text))
    text = _EXTERNAL.sub(lambda found: found.group(1) or "", text)
    text = _TAG.sub("", _HEADING.sub(r"\n\2\n", text.replace("'''", "").replace("''", "")))
    lines = (line.lstrip("*#:; ").rstrip() for line in _EMPTY_BRACKETS.sub("", html.unescape(text)).splitlines())
    lines = (_DANGLING.sub(lambda found: found.group(1) or "", line) for line in lines)
    kept = (line for line in lines if not line.startswith(("|", "!", "{|", "}}", "__")))
    return re.sub(r"[ \t\xa0]+", " ", re.sub(r"\n{3,}", "\n\n", "\n".join(kept))).strip()


def _until_stable_links(text: str) -> str:
    """Captions of images hold links: resolve the innermost ones until no image or category is left."""
    while True:
        text = _MEDIA_LINK.sub("", text)
        if not re.search(r"\[\[\s*(?:file|image|media)\s*:", text, re.IGNORECASE):
            return text
        resolved = _LINK.sub(r"\1", text)
        if resolved == text:
            return text
        text = resolved


def _until_stable(pattern: re.Pattern[str], replacement: str, text: str) -> str:
    """Substitute until nothing changes: each pass removes the innermost level of a nested construct."""
    while (shorter := pattern.sub(replacement, text)) != text:
        text = shorter
    return text
