"""The report page: one HTML file that works from the file system without network, on paper and on a phone."""

from pathlib import Path

from llmpq import artifacts
from llmpq.report import tables
from llmpq.report.binding import decision, limits
from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures import Figure, all_figures
from llmpq.report.format import joined, mib, number, percent
from llmpq.report.render import SOURCE_WORDS, render, view, write_rows
from llmpq.report.verdict import how

NAMED_DEVICES = 4  # beyond, the page's first line counts devices by type


def write_page(experiment: Experiment, summary: Document, page: str | Path, figure_directory: str | Path) -> list[Figure]:
    """Write the page and beside it one CSV per figure; returns the figures. Paths: the HTML file, the folder of the CSV files."""
    page, figure_directory = Path(page), Path(figure_directory)
    sections = all_figures(experiment, summary)
    figures = [figure for section in sections.values() for figure in section]
    for figure in figures:
        write_rows(figure, figure_directory)
    artifacts.write_text(page, _page(experiment, summary, sections, page, figure_directory))
    return figures


def _page(experiment: Experiment, summary: Document, sections: dict[str, list[Figure]], page: Path, figure_directory: Path) -> str:
    focus = next(run for run in experiment.runs if run.strategy == summary["verdict"]["focus"])
    return render(
        "page.html",
        title=summary["experiment"],
        summary=summary,
        verdict=summary["verdict"],
        lead=_lead(experiment, summary),
        tiles=_tiles(summary),
        source_words=SOURCE_WORDS.get(summary["source"], summary["source"]),
        figures={section: [view(figure, page, figure_directory) for figure in listed] for section, listed in sections.items()},
        comparison=tables.comparison(summary),
        decision=decision(focus, experiment),
        quality=tables.quality(summary),
        paired=tables.paired(summary),
        focus_stages=tables.stages(focus),
        other_stages=[tables.stages(run) for run in experiment.runs if run is not focus],
        limits=limits(focus.plan),
        explanation=experiment.explanation,
        fronts=tables.fronts(experiment),
        planning=tables.planning(experiment),
        simulation=_simulation(summary),
        cost_model=tables.cost_model(experiment),
        files=tables.files(experiment, page),
    )


def _lead(experiment: Experiment, summary: Document) -> str:
    workload = summary["workload"]
    kinds = [device.get("type", device["name"]) for device in experiment.devices]
    names = [device["name"] for device in experiment.devices]
    listed = names if len(names) <= NAMED_DEVICES else [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
    return (
        f"{summary['model']} ({summary['layers']} layers) on {joined(listed)}: {workload['requests']} requests of "
        f"{workload['prompt_tokens']} prompt tokens, {workload['new_tokens']} new tokens each."
    )


def _simulation(summary: Document) -> str:
    focus = next(entry for entry in summary["strategies"] if entry["strategy"] == summary["verdict"]["focus"])
    if focus["simulated_total_s"] is None:
        return ""
    return (
        f"The planner's formula gives {number(focus['planned_total_s'], 4)} s for the plan of {focus['strategy']}; an event "
        f"simulation written independently of it gives {number(focus['simulated_total_s'], 4)} s."
    )


def _tiles(summary: Document) -> list[dict[str, str]]:
    """The few numbers one takes home."""
    verdict = summary["verdict"]
    focus = next(entry for entry in summary["strategies"] if entry["strategy"] == verdict["focus"])
    tiles = [_tile(number(focus["tokens_per_s"][verdict["side"]]), f"{how(summary)}, {focus['strategy']}", "tokens/s")]
    if verdict["speedup"] is not None:
        tiles.append(_tile(f"{number(verdict['speedup'])}×", f"the speed of {verdict['fastest_other']}"))
    for text in focus["quality"]:
        tiles.append(_tile(number(text["perplexity"]), f"perplexity on {text['text']}", f"± {number(text['standard_error'], 2)}"))
    if summary["served"]:
        tiles.append(_tile(percent(focus["total_s"]["error_percent"], signed=True), "predicted against measured time"))
    fullest = max((device for device in focus["bytes"] if device["predicted"]), key=lambda device: device["predicted"] / device["budget"])
    share = percent(100 * fullest["predicted"] / fullest["budget"])
    return [*tiles, _tile(share, f"of {mib(fullest['budget'])} MiB planned on {fullest['device']}")]


def _tile(value: str, what: str, unit: str = "") -> dict[str, str]:
    return {"value": value, "unit": unit, "what": what}
