"""Cut the requests of an experiment from their text."""

from llmpq.job import job
from llmpq.workload import write_workload

with job(snakemake):
    given, settings = snakemake.input, snakemake.params.workload
    write_workload(settings["name"], settings, given.text, given.checkpoint, snakemake.output[0])
