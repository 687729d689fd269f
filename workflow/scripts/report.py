"""Compare the strategies of an experiment: summary, table, page and figures."""

from pathlib import Path

from llmpq.job import job
from llmpq.report.write import write_report

with job(snakemake):
    given, out = snakemake.input, snakemake.output
    write_report(
        Path(out.summary).parent,
        problem=given.problem,
        indicator=given.indicator,
        costs=given.costs,
        explanation=given.explain,
        front=given.pareto,
        strategies=snakemake.params.strategies,
        summary=out.summary,
        table=out.table,
        page=out.page,
        figures=out.figures,
    )
