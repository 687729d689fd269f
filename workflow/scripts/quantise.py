"""Quantise a group of layers at every option."""

from llmpq.job import job
from llmpq.quant.quantise import quantise_group

with job(snakemake):
    given, settings = snakemake.input, dict(snakemake.params.quantizer)
    first, last = map(int, snakemake.wildcards.group.split("-")[1:])
    options = settings.pop("options")
    quantise_group(given.checkpoint, given.calibration, snakemake.output[0], first=first, last=last, options=options, settings=settings)
