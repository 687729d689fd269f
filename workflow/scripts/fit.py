"""Fit latency formulas to the times of one device."""

from llmpq.cost.latency import write_cost
from llmpq.job import job

with job(snakemake):
    names = snakemake.wildcards
    expected = {"model": names.model, "device": names.device, "backend": snakemake.params.backend}
    write_cost(snakemake.input[0], snakemake.output[0], **expected)
