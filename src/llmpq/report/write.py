"""The report stage: everything of one experiment, compared in a table, a page and CSV files."""

from collections.abc import Sequence
from pathlib import Path

from llmpq.report.experiment import Document, load_experiment
from llmpq.report.page import write_page
from llmpq.report.summary import summarise, write_summary


def write_report(
    experiment_dir: str | Path,
    *,
    problem: str | Path,
    indicator: str | Path | None,
    costs: Sequence[str | Path],
    strategies: Sequence[str],
    summary: str | Path,
    table: str | Path,
    page: str | Path,
    figures: str | Path,
    explanation: str | Path | None = None,
    front: str | Path | None = None,
    simulation: str | Path | None = None,
    served: bool = True,
) -> Document:
    """Compare ``strategies`` of the experiment in ``experiment_dir`` (``<strategy>/plan.json, serve.json, quality.json, timeline.json``).

    Reads ``problem`` (problem.json), ``indicator`` and ``costs`` (JSON artifacts) too, and where given ``explanation`` (explain.json) and
    ``front`` (pareto.json); writes ``summary`` (summary.json), ``table`` (summary.csv), ``page`` (one HTML file) and one CSV per figure
    into the folder ``figures``. ``simulation`` (simulation.json) stands for what was measured where the devices are not here; ``served``
    false expects plans alone.
    Returns the summary document. Raises ArtifactError for anything missing, truncated or left from an earlier run, before writing.
    """
    experiment = load_experiment(
        experiment_dir,
        problem=problem,
        indicator=indicator,
        costs=costs,
        strategies=strategies,
        explanation=explanation,
        front=front,
        simulation=simulation,
        served=served,
    )
    body = summarise(experiment)
    write_page(experiment, body, page, figures)
    return write_summary(experiment, body, summary, table)
