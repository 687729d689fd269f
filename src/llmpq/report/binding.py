"""A plan in words: what it decides, and what keeps it from being better."""

from llmpq.report.experiment import Document, Experiment, Run
from llmpq.report.format import by_bits, joined, layer_range, mib


def decision(run: Run, experiment: Experiment) -> str:
    """Which device runs which layers, with which options, in which micro-batches."""
    stages = run.plan["stages"]
    parts = []
    for stage in stages:
        ends = [f"the {end} at {stage[f'{end}_option']}" for end in ("embedding", "head") if stage[f"has_{end}"]]
        parts.append(
            f"{stage['device']} {layer_range(stage['first_layer'], len(stage['options']))}" + (f" with {joined(ends)}" if ends else "")
        )
    used = {stage["device"] for stage in stages}
    idle = [device["name"] for device in experiment.devices if device["name"] not in used]
    chosen = [option for stage in stages for option in stage["options"]]
    counts = [(chosen.count(option), option) for option in by_bits(chosen)]
    kept = joined([f"{count} at {option}" if index else f"{count} {'layer' if count == 1 else 'layers'} at {option}"
                   for index, (count, option) in enumerate(counts)])  # fmt: skip
    sizes = run.plan["micro_batch"]
    return (
        f"{run.strategy} gives {joined(parts)}" + (f", and leaves out {joined(idle)}" if idle else "") + f". It keeps {kept}. "
        f"Prompts are read {sizes['prefill']} at a time, new tokens are made for {sizes['decode']} requests at a time."
    )


def limits(plan: Document) -> list[str]:
    """One sentence per entry of ``plan["binding"]``."""
    return [_sentence(plan, item) for item in plan["binding"]]


def _sentence(plan: Document, item: Document) -> str:
    stages = [stage["device"] for stage in plan["stages"]]
    index, what, slack = item["stage"], item["what"], item["slack"]
    if what == "memory":
        return f"Memory on {stages[index]}: the {mib(slack)} MiB left are too few for a gentler option in any of its layers."
    if what == "quality":
        return f"Quality: {slack:.2g} of the damage allowed is left, too little for a harsher option in any layer."
    if what == "round_trip":
        return (
            "Decode, the round trip: a request's next token has to wait until the last one has passed every stage, so no stage is busy "
            "all the time; more or smaller micro-batches, or fewer stages, would be needed."
        )
    phase = what.removesuffix("_link")
    if what.endswith("_link"):
        return (
            f"{phase.capitalize()}, the link from {stages[index]} to {stages[(index + 1) % len(stages)]}: nothing else takes longer there."
        )
    return f"{phase.capitalize()} on {stages[index]}: the slowest stage, all others wait for it."
