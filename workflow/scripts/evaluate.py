"""Quality of the assignment of a plan; plans with equal assignments share the result."""

from pathlib import Path

import torch

from llmpq import artifacts, planless
from llmpq.evaluate.quality import evaluate_quality, plan_ends, plan_options, write_quality
from llmpq.evaluate.reference import read_reference
from llmpq.evaluate.tasks import make_tasks
from llmpq.job import job
from llmpq.model.tokenizer import load_tokenizer
from llmpq.text import scored_windows


def evaluate(plan):
    """The body of quality.json, from the file of an equal assignment where there is one, and that file."""
    given, settings = snakemake.input, snakemake.params.evaluate
    options, ends, texts = plan_options(plan), plan_ends(plan), {Path(text).stem: text for text in given.texts}
    inputs = [*(Path(group) / "manifest.json" for group in given.quantised), *given.texts, *([given.reference] if given.reference else [])]
    key = artifacts.digest([options, ends, settings, snakemake.params.code, *map(artifacts.sha256_file, inputs)])
    shared = Path("results/quality") / f"{key[:16]}.json"
    if not shared.is_file():
        tokenizer, region, stride = load_tokenizer(given.checkpoint), settings["region"], settings["stride"]
        cut = {"windows": settings["windows"], "tokens": settings["window_tokens"], "stride": stride}
        windows = {name: torch.tensor(scored_windows(tokenizer, texts[name], region, **cut)) for name in settings["texts"]}
        asked = {"news": texts.get("news"), "region": region, "questions": settings["questions"], "sources": settings["sources"]}
        tasks = make_tasks(settings["tasks"], tokenizer, **asked)
        found = {"reference": read_reference(given.reference) if given.reference else None, "tasks": tasks, "stride": stride}
        body = evaluate_quality(given.checkpoint, given.quantised, options, windows, ends=ends, **found)
        artifacts.write(shared, "quality", body, source="measured", inputs=inputs, config=settings)
    body = artifacts.read(shared, "quality")
    return {name: value for name, value in body.items() if name not in ("schema", "version", "provenance")}, shared


with job(snakemake):
    plan = artifacts.read(snakemake.input.plan, "plan")
    if planless.reason(plan) is not None:
        planless.write_unevaluated(snakemake.input.plan, snakemake.output[0])
    else:
        body, shared = evaluate(plan)
        write_quality(snakemake.output[0], plan, body, inputs=[snakemake.input.plan, shared])
