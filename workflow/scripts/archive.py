"""Pack one experiment so that someone else can open it."""

from llmpq.archive import pack
from llmpq.job import job

with job(snakemake):
    pack(snakemake.params.experiment, snakemake.output[0])
