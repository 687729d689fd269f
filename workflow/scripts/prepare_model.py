"""Fetch a model and convert it once."""

from pathlib import Path

from llmpq import artifacts
from llmpq.errors import ConfigError
from llmpq.job import job
from llmpq.model.prepare import prepare_model

with job(snakemake):
    wanted = snakemake.params.model
    settings = {key: value for key, value in wanted.items() if value != ""}
    path = prepare_model({"name": snakemake.wildcards.model, **settings}, Path(snakemake.output.model).parent)
    layers = artifacts.read(path, "model")["spec"]["layers"]
    if layers != wanted["layers"]:
        path.unlink()
        raise ConfigError(f"key 'model.layers' is {wanted['layers']}, but {snakemake.wildcards.model} has {layers}: correct config/model")
