"""Fetch a text for calibration, prompts and perplexity."""

from llmpq.job import job
from llmpq.text import prepare_text

with job(snakemake):
    prepare_text(snakemake.params.text, snakemake.output[0], snakemake.params.source)
