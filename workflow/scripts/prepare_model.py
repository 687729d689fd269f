"""Fetch a model and convert it once."""

from pathlib import Path

from llmpq.job import job
from llmpq.model.prepare import prepare_model

with job(snakemake):
    settings = {key: value for key, value in snakemake.params.model.items() if value != ""}
    prepare_model({"name": snakemake.wildcards.model, **settings}, Path(snakemake.output.model).parent)
