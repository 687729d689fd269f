"""Time one decoder layer, the embedding and the head of a model on one device."""

from llmpq.job import job
from llmpq.profile.layers import profile_device
from llmpq.quant.options import layer_options

with job(snakemake):
    names, settings = snakemake.wildcards, dict(snakemake.params.profile)
    profile_device(
        snakemake.input.checkpoint,
        names.model,
        {"name": names.device, **snakemake.params.device},
        {"name": names.profile, **settings},
        snakemake.output[0],
        options=layer_options(settings.pop("options"), snakemake.params.model["kv_options"]),
        end_options=snakemake.params.model["end_options"],
    )
