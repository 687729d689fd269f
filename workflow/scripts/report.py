"""Compare the strategies of an experiment: summary, table, page and figures."""

from pathlib import Path

from llmpq.job import job
from llmpq.report.write import write_report

with job(snakemake):
    given, out = snakemake.input, snakemake.output
    write_report(
        Path(out.summary).parent,
        problem=given.problem,
        indicator=given.indicator or None,
        costs=given.costs,
        explanation=given.explain or None,
        front=given.pareto,
        simulation=given.simulation[0] if given.simulation else None,
        strategies=snakemake.params.strategies,
        summary=out.summary,
        table=out.table,
        page=out.page,
        figures=out.figures,
    )
