"""Compare the experiments of a suite on one page."""

from pathlib import Path

from llmpq.job import job
from llmpq.suites.page import write_suite

with job(snakemake):
    suite, out = snakemake.wildcards.suite, snakemake.output
    folders = {Path(path).parent.name: Path(path).parent for path in snakemake.input.summaries}
    write_suite("All suites" if suite == "all" else f"Suite {suite}", folders, snakemake.params.facts, out.page, out.data)
