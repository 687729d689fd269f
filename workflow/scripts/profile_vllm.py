"""Time one decoder layer, the embedding and the head of a model through vLLM on one device."""

from pathlib import Path

from llmpq.export.choice import choice_for
from llmpq.job import job
from llmpq.vllm_serve.process import interpreter
from llmpq.vllm_serve.profile import profile_with_vllm
from llmpq.vllm_serve.settings import BACKEND

with job(snakemake):
    names, settings, model = snakemake.wildcards, dict(snakemake.params.profile), snakemake.params.model
    choice = choice_for(BACKEND, settings.pop("options"), model["end_options"], model["kv_options"])
    profile_with_vllm(
        snakemake.input.checkpoint,
        names.model,
        {"name": names.device, **snakemake.params.device},
        {"name": names.profile, **settings},
        snakemake.output[0],
        options=choice.options,
        python=interpreter(),
        compiled=snakemake.params.compiled,
        log=Path(snakemake.log[0]).with_suffix(".vllm.log"),
    )
