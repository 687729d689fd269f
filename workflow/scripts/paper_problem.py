"""Write the planning problem of a row of config/paper.yaml from data sheets."""

from pathlib import Path

from llmpq.cost.paper import write_paper_problem
from llmpq.job import job

with job(snakemake):
    names = snakemake.wildcards
    write_paper_problem(snakemake.output[0], Path(snakemake.input.rows).parent, names.row, names.generation)
