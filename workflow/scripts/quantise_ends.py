"""Quantise embedding and head at every option."""

from llmpq.job import job
from llmpq.quant.ends import quantise_ends

with job(snakemake):
    quantise_ends(snakemake.input.checkpoint, snakemake.output[0], options=snakemake.params.options)
