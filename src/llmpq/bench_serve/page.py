"""docs/bench-serve.md: the newest stored measurement of everything, beside the targets, with date, revision and load of each."""

from collections.abc import Iterable
from pathlib import Path

from llmpq import artifacts
from llmpq.bench.curve import BROWSERS, browser, svg
from llmpq.bench_serve import cases, growth, record, tables
from llmpq.bench_serve.record import Line
from llmpq.model.spec import ModelSpec

FIGURE = "images/bench-serve-curves.svg"
# Above this load, or with another at work than the one measured before, figures are disturbed.
BUSY = 2.5


def write_page(path: Path, lines: Iterable[Line], spec: ModelSpec) -> None:
    """Write the page from the newest measurements; ``spec`` is the model's, for its floor."""
    artifacts.write_text(path, page(lines, spec, figure=(path.parent / FIGURE).is_file()))


def write_figure(path: Path, lines: Iterable[Line]) -> str:
    """Draw the curves into ``path`` where they were measured and a browser is at hand; what to tell the user ('' if nothing)."""
    drawing, program = growth.draw(record.newest(lines)), browser()
    if drawing is None:
        return ""
    if program is None:
        return f"{path} was not drawn again: that needs one of {', '.join(BROWSERS)}"
    text = svg(drawing, program, growth.HEIGHT)
    if not text.startswith("<svg"):
        return f"{path} was not drawn again: {program} gave no picture"
    artifacts.write_text(path, text + "\n")
    return ""


def page(lines: Iterable[Line], spec: ModelSpec, figure: bool = False) -> str:
    """Markdown; a section for each part. ``figure``: FIGURE is there."""
    groups = record.newest(lines)
    sections = {
        "Targets": tables.targets(groups, spec) if groups else [],
        "Side by side": tables.contest(groups),
        "Distance to the machine's limit": _with(_LIMIT, tables.limit(groups, spec)),
        "Quality of what was timed": _with(_QUALITY, tables.quality(groups)),
        "Cost as work grows": growth.growth(groups, FIGURE if figure else None),
    }
    text = ["# Serving beside other engines", "", *_preface([line for group in groups.values() for line in group]), ""]
    for title, body in sections.items():
        text += [f"## {title}", "", *(body or ["Not measured yet."]), ""]
    return "\n".join(text).rstrip() + "\n"


def _with(words: str, body: list[str]) -> list[str]:
    return [words, "", *body] if body else []


def _preface(shown: list[Line]) -> list[str]:
    machines = sorted({line.machine for line in shown})
    busy = sum(line.load > BUSY for line in shown)
    return [
        "Written by `make bench-serve` from docs/bench-serve.jsonl, which holds every result ever stored; this page shows the newest of "
        f"each. Machine: {'; '.join(machines) or 'none yet'}. Ratios travel, seconds do not.",
        "",
        f"SmolLM2-135M, real prompts of {cases.PROMPT_TOKENS} tokens, {cases.NEW_TOKENS} new tokens each: everyone gets the same token "
        "ids, chooses greedily, ignores the end of a text, and has the same cores and as many threads. Rounds go through all of them in "
        "turn, forwards and backwards; other engines stay loaded and are stopped while it is not their turn, ours starts anew. Medians, "
        "with the quartiles in brackets. Seconds are from the first prompt to the last token, so prefill is in tokens/s; loading and one "
        "short warm-up are not. CPU s are processor seconds and peak MB resident memory of all processes of a system together, after "
        "loading; of ours those of the stages, without the launcher, which only waits. Same tokens: share equal to those of "
        "ours at 16 bit, place by place; greedy runs part for good at the first near-tie "
        "that falls differently.",
        "",
        "The model comes from a GGUF file at 4 bits (Q4_1), of which our reference and the fp32 checkpoint are the dequantised weights: "
        "openvino-genai's 4 bit reads that file itself, so its codes cost no quality here as they would for a model of other weights; how "
        "exactly the engine keeps them shows under same tokens. Its int8 is the fp32 checkpoint as optimum-intel exports it, Q8_0 the GGUF "
        "file rounded to blocks of 32 at 8 bits. openvino-genai rounds activations and its KV cache by its own defaults.",
        "",
        f"Load is the machine's one-minute average before each start; the bench itself makes up to 2. {busy} of the {len(shown)} results "
        f"shown were taken above {BUSY:g}, that is while other work shared the machine: their seconds are too long by an unknown amount.",
    ]


_LIMIT = (
    "Rates are measured first, each kernel at shapes that suit it, bandwidth by summing a tensor larger than any cache. The floor of a "
    "call is Σ operations / rate or bytes / bandwidth, whichever is more, with weights read once a call, prefill in one call a wave, and "
    "everything beside products free (`src/llmpq/bench_serve/floor.py`). An option's rate is that of the fastest kernel of its own or "
    "wider numbers. Two stages are held against the floor of as many threads in one process."
)
_QUALITY = (
    f"Perplexity through the kernels that were timed, {cases.QUALITY_WINDOWS} windows of {cases.QUALITY_TOKENS} tokens from the second "
    f"half of each text; the last ratio is the larger of the texts', at most {cases.PERPLEXITY_RATIO:g} for a target of 8 bit."
)
