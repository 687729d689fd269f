"""How throughput and memory go as work grows: the tables of docs/bench-serve.md and their figure, drawn by plotly."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmpq.bench.tables import table
from llmpq.bench_serve import cases
from llmpq.bench_serve.record import Case, Line
from llmpq.bench_serve.tables import Groups, loads_and_origin, median, number, spread
from llmpq.report.figures.base import axis, layout
from llmpq.report.palette import option_colour

HEIGHT = 460
NAMES = {"requests": "requests in the queue", "stages": "stages", "prompt": "prompt tokens"}
CONSTANT = 1.05  # largest peak over smallest, for memory that does not grow


def size_of(curve: str, case: Case) -> int:
    """Where a point of a curve stands."""
    return {"requests": case.requests, "stages": case.stages, "prompt": case.prompt_tokens}[curve]


def points(groups: Groups, curve: str) -> list[list[Line]]:
    """The repetitions of each measured point, in order of size."""
    own = [lines for key, lines in groups.items() if key[0] == "curves" and key[2] == curve and lines[-1].measured]
    return sorted(own, key=lambda lines: size_of(curve, lines[-1].case))


def tokens_per_s(line: Line) -> float:
    """Prompt and new tokens a second: what grows with prompts is mostly prefill."""
    return line.case.requests * (line.case.prompt_tokens + line.case.new_tokens) / (line.seconds or float("nan"))


def growth(groups: Groups, figure: str | None) -> list[str]:
    """A table a curve, and the sentence about memory."""
    found: list[str] = [f"![Throughput and peak memory as work grows]({figure})", ""] if figure else []
    for curve, name in NAMES.items():
        own = points(groups, curve)
        if not own:
            continue
        head = [name, "stages", "new tokens each", "prompt and new tokens/s", "peak MB by stage", "rounds", "load", "date", "revision"]
        found += [
            f"### {name.capitalize()}",
            "",
            *(sentence(own) if curve == "requests" else []),
            *table(head, (_row(curve, lines) for lines in own)),
            "",
        ]
    return found[:-1]


def sentence(own: Sequence[list[Line]]) -> list[str]:
    """Whether memory grows with the queue."""
    peaks = [_peak(lines) for lines in own]
    ratio = max(peaks) / min(peaks) if min(peaks, default=0) else float("nan")
    sizes = [lines[-1].case.requests for lines in own]
    verdict = "does not grow" if ratio <= CONSTANT else "GROWS"
    return [
        f"Memory {verdict} with the queue: from {min(sizes)} to {max(sizes):,} requests the largest peak is {ratio:.3f} of the smallest.",
        "",
    ]


def _row(curve: str, lines: list[Line]) -> list[str]:
    case = lines[-1].case
    stages = [median(lines, lambda line, at=stage: (line.peaks or [])[at] / 1e6) for stage in range(case.stages)]  # type: ignore[misc]
    speeds = [tokens_per_s(line) for line in lines]
    memory = " + ".join(number(value, 0) for value in stages)
    return [
        f"{size_of(curve, case):,}",
        str(case.stages),
        str(case.new_tokens),
        spread(speeds),
        memory,
        str(len(lines)),
        *loads_and_origin(lines),
    ]


def _peak(lines: list[Line]) -> float:
    """Median of the stages' peaks together, bytes."""
    return median(lines, lambda line: sum(line.peaks or [])) or 0.0


def draw(groups: Groups) -> go.Figure | None:
    """Throughput above, memory below, a column a curve; None where nothing was measured."""
    shown = [curve for curve in cases.CURVES if points(groups, curve)]
    if not shown:
        return None
    figure = make_subplots(rows=2, cols=len(shown), vertical_spacing=0.12, horizontal_spacing=0.09)
    for column, curve in enumerate(shown, start=1):
        own = points(groups, curve)
        sizes = [size_of(curve, lines[-1].case) for lines in own]
        rows = ([median(lines, tokens_per_s) for lines in own], [_peak(lines) / 1e6 for lines in own])
        for row, (values, option) in enumerate(zip(rows, ("16", "4"), strict=True), start=1):
            line = {"width": 2.5, "color": option_colour(option)}
            figure.add_scatter(
                x=sizes, y=values, mode="lines+markers", line=line, marker={"size": 9}, showlegend=False, row=row, col=column
            )
            title = NAMES[curve] if row == 2 else None
            figure.update_xaxes(
                axis(title=title, type="log", tickvals=sizes, ticktext=[f"{size:,}" for size in sizes]), row=row, col=column
            )
            name = ("tokens/s", "peak MB")[row - 1] if column == 1 else None
            figure.update_yaxes(axis(title=name, rangemode="tozero"), row=row, col=column)
    figure.update_layout(
        layout(HEIGHT, width=760, paper_bgcolor="#ffffff", plot_bgcolor="#ffffff", margin={"l": 8, "r": 24, "t": 24, "b": 52})
    )
    return figure
