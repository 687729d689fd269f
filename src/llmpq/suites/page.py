"""The page of a suite, or of all suites: one HTML file over many experiments, with the data of everything on it as CSV."""

import os
from collections.abc import Mapping
from pathlib import Path

from llmpq import artifacts
from llmpq.report.render import SOURCE_WORDS, render, view
from llmpq.report.summary import to_csv
from llmpq.suites import published
from llmpq.suites.members import Member, load_members
from llmpq.suites.overview import overview, overview_rows
from llmpq.suites.speedups import speedups
from llmpq.suites.strips import plan_rows, strips


def write_suite(
    title: str, directories: Mapping[str, str | Path], facts: Mapping[str, Mapping[str, str]], page: str | Path, data: str | Path
) -> list[Member]:
    """Compare the experiments in ``directories`` (folder by name) on ``page`` (HTML), with CSV files in the folder ``data``.

    ``facts``: what the configuration says of each (fields of ``members.Facts``). Raises ArtifactError for a missing or broken file.
    """
    page, data = Path(page), Path(data)
    members = load_members(directories, facts)
    figure = speedups(members)
    tables = {"overview": overview_rows(members), "plans": plan_rows(members), "published": published.published_rows(members)}
    tables |= {figure.name: figure.rows} if figure else {}
    for name, rows in tables.items():
        if rows:
            artifacts.write_text(data / f"{name}.csv", to_csv(rows))
    linked = os.path.relpath(data.absolute(), page.absolute().parent)
    compared = published.of_the_paper(members)
    sources = sorted({member.summary["source"] for member in members})
    html = render(
        "suite.html",
        title=title,
        count=len(members),
        sources=[{"name": source, "words": SOURCE_WORDS[source]} for source in sources],
        notes=sorted({member.summary["note"] for member in members if "note" in member.summary}),
        data=linked,
        overview=overview(members),
        links={member.name: _href(member, page) for member in members},
        figures=[view(figure, page, data)] if figure else [],
        published=published.FIGURES if compared else [],
        tokens=published.tokens_table(members) if compared else None,
        speedup=published.speedup_table(members) if compared else None,
        findings=published.findings(members),
        speedups_published=published.SPEEDUPS,
        plans=[{**strips(member), "href": _href(member, page)} for member in members],
    )
    artifacts.write_text(page, html)
    return members


def _href(member: Member, page: Path) -> str:
    return Path(os.path.relpath((member.directory / "report.html").absolute(), page.absolute().parent)).as_posix()
