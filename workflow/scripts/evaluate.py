"""Perplexity of the assignment of a plan; plans with equal assignments share the result."""

from pathlib import Path

import torch

from llmpq import artifacts, planless
from llmpq.evaluate.perplexity import evaluate_quality, plan_ends, plan_options, write_quality
from llmpq.job import job
from llmpq.model.tokenizer import load_tokenizer
from llmpq.text import token_windows


def evaluate(plan):
    """The body of quality.json, from the file of an equal assignment where there is one, and that file."""
    given, settings = snakemake.input, snakemake.params.evaluate
    options, ends = plan_options(plan), plan_ends(plan)
    manifests = [Path(group) / "manifest.json" for group in given.quantised]
    key = artifacts.digest([options, ends, settings, snakemake.params.code, *map(artifacts.sha256_file, [*manifests, *given.texts])])
    shared = Path("results/quality") / f"{key[:16]}.json"
    if not shared.is_file():
        tokenizer = load_tokenizer(given.checkpoint)
        cut = {"windows": settings["windows"], "tokens": settings["window_tokens"]}
        texts = {Path(text).stem: torch.tensor(token_windows(tokenizer, text, settings["region"], **cut)) for text in given.texts}
        body = evaluate_quality(given.checkpoint, given.quantised, options, texts, ends=ends)
        artifacts.write(shared, "quality", body, source="measured", inputs=[*manifests, *given.texts], config=settings)
    body = artifacts.read(shared, "quality")
    return {name: value for name, value in body.items() if name not in ("schema", "version", "provenance")}, shared


with job(snakemake):
    plan = artifacts.read(snakemake.input.plan, "plan")
    if planless.reason(plan) is not None:
        planless.write_unevaluated(snakemake.input.plan, snakemake.output[0])
    else:
        body, shared = evaluate(plan)
        write_quality(snakemake.output[0], plan, body, inputs=[snakemake.input.plan, shared])
