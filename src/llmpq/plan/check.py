"""An independent judge of plans: everything recomputed from problem.json as it stands, without the planner's code or its solver."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.plan.check_offload import check_offload

Json = Mapping[str, Any]

# Sums of doubles in another order differ by rounding only.
_RELATIVE = 1e-9
# Solvers prove to relative tolerances of 1e-7; a gap this far above the one requested is still rounding.
_PROOF = 1e-6
_PHASES = ("prefill", "decode")
_ENDS = ("embedding", "head")


def check(problem: Json, plan: Json) -> list[str]:
    """Every fault of ``plan`` as a plan for ``problem`` (documents or bodies); [] for a valid plan.

    Decisions first (devices, contiguity, options, micro-batches); where they make no sense, nothing is priced. Then bytes by kind,
    times, quality, objective and certificate.
    """
    try:
        problem = {"schema": "llmpq.problem", "version": 1, **problem}
        plan = {"schema": "llmpq.plan", "version": 1, **plan}
        artifacts.check(problem, "problem", "problem")
        artifacts.check(plan, "plan", "plan")
    except ArtifactError as error:
        return [str(error)]
    if "status" in plan:
        return [*_identity(problem, plan), *(check_offload(problem, plan) if "offload" in plan else ())]
    faults = [*_decisions(problem, plan), *_micro_batches(problem, plan)]
    if faults:
        return faults
    try:
        offload = check_offload(problem, plan) if "offload" in plan else ()
        return [*_bytes(problem, plan), *_prices(problem, plan), *_certificate(plan), *_identity(problem, plan), *offload]
    except KeyError as missing:
        return [f"the problem's tables have no entry {missing}, which this plan needs"]


def _decisions(problem: Json, plan: Json) -> Iterator[str]:
    devices = {device["name"]: device for device in problem["devices"]}
    layers, stages = problem["model"]["layers"], plan["stages"]
    following = 0
    for j, stage in enumerate(stages):
        name = stage["device"]
        if name not in devices:
            yield f"stage {j} is on device '{name}', which the problem does not have"
        elif name in [other["device"] for other in stages[:j]]:
            yield f"stage {j} is on device '{name}', which already has an earlier stage"
        else:
            yield from _shared_devices(devices, stages, j)
        if stage["first_layer"] != following:
            yield f"stage {j} begins at layer {stage['first_layer']}, not at {following}: every layer once, in order"
        following = stage["first_layer"] + len(stage["options"])
        for layer, option in enumerate(stage["options"], stage["first_layer"]):
            if name in devices and option not in devices[name]["options"]:
                yield f"layer {layer} has option '{option}', which device '{name}' does not offer"
        for end, here in (("embedding", j == 0), ("head", j == len(stages) - 1)):
            yield from _end_decision(devices.get(name), stage, j, end, here)
    if following != layers:
        yield f"the stages end at layer {following}, the model has {layers} layers"


def _shared_devices(devices: Mapping[str, Json], stages: Sequence[Json], j: int) -> Iterator[str]:
    """Stages whose devices are the same hardware, by their names or through the groups that they belong to."""

    def hardware(name: str) -> set[str]:
        return set(devices[name].get("uses", [name])) if name in devices else set()

    name = stages[j]["device"]
    for k, other in enumerate(stages[:j]):
        both = hardware(name) & hardware(other["device"])
        if both:
            yield f"stage {j} on '{name}' and stage {k} on '{other['device']}' both use {', '.join(sorted(both))}"


def _end_decision(device: Json | None, stage: Json, j: int, end: str, here: bool) -> Iterator[str]:
    place = {"embedding": "first", "head": "last"}[end]
    if stage[f"has_{end}"] != here:
        yield f"stage {j}: has_{end} is {stage[f'has_{end}']}; the {end} is on the {place} stage and nowhere else"
    option = stage[f"{end}_option"]
    if (option is not None) != here:
        yield f"stage {j}: {end}_option is {option}; the {place} stage has one, every other stage null"
    elif here and device is not None and option not in device[end]:
        yield f"stage {j}: {end}_option is '{option}', which device '{stage['device']}' does not offer"


def _split(total: int, at_most: int) -> list[int]:
    """The fewest parts of at most ``at_most``, as equal as whole numbers allow."""
    parts = math.ceil(total / at_most)
    return [total // parts + (k < total % parts) for k in range(parts)]


def _sizes(problem: Json, plan: Json) -> dict[str, list[int]]:
    xi, eta = plan["micro_batch"]["prefill"], plan["micro_batch"]["decode"]
    decode = _split(problem["workload"]["slots"], eta)
    return {"prefill": [size for batch in decode for size in _split(batch, xi)], "decode": decode}


def _micro_batches(problem: Json, plan: Json) -> Iterator[str]:
    batch, slots = plan["micro_batch"], problem["workload"]["slots"]
    if not batch["prefill"] <= batch["decode"] <= slots:
        yield f"micro-batches: prefill {batch['prefill']} <= decode {batch['decode']} <= slots {slots} does not hold"
        return
    sizes = _sizes(problem, plan)
    for phase in _PHASES:
        if batch[f"{phase}_count"] != len(sizes[phase]):
            yield f"micro_batch.{phase}_count is {batch[f'{phase}_count']}, {slots} slots make {len(sizes[phase])}"
        if batch[phase] != max(sizes[phase]):
            yield f"micro_batch.{phase} is {batch[phase]}, the largest micro-batch has {max(sizes[phase])} requests"
        listed = problem.get("micro_batches", {}).get(phase)
        if listed is not None and all(_same_split(problem, plan, phase, size) is False for size in listed):
            yield f"micro_batch.{phase} is {batch[phase]}, not among the sizes the problem lists"


def _same_split(problem: Json, plan: Json, phase: str, size: int) -> bool:
    """Whether a listed largest size makes the very micro-batches of the plan."""
    return _sizes(problem, {"micro_batch": {**plan["micro_batch"], phase: size}})[phase] == _sizes(problem, plan)[phase]


def _differs(found: float, expected: float) -> bool:
    return not math.isclose(found, expected, rel_tol=_RELATIVE, abs_tol=1e-12)


def _device(problem: Json, stage: Json) -> Json:
    return next(device for device in problem["devices"] if device["name"] == stage["device"])


def _bytes(problem: Json, plan: Json) -> Iterator[str]:
    sizes = _sizes(problem, plan)
    for j, stage in enumerate(plan["stages"]):
        device, found = _device(problem, stage), stage["bytes"]
        expected = {
            "weights": sum(device["options"][option]["resident_bytes"] for option in stage["options"]),
            "kv": sum(_cache_bytes(problem, option) for option in stage["options"]),
            **_end_bytes(problem, device, stage),
            "workspace": max(device["workspace_bytes"][phase][str(size)] for phase in _PHASES for size in sizes[phase]),
        }
        for kind, size in expected.items():
            if found[kind] != size:
                yield f"stage {j}: bytes.{kind} is {found[kind]}, recomputed {size}"
        total = sum(expected.values())
        if found["total"] != total:
            yield f"stage {j}: bytes.total is {found['total']}, recomputed {total}"
        if found["budget"] != device["memory_bytes"]:
            yield f"stage {j}: bytes.budget is {found['budget']}, device '{device['name']}' has {device['memory_bytes']}"
        if total > device["memory_bytes"]:
            yield f"stage {j} needs {total} bytes, device '{device['name']}' has {device['memory_bytes']}"
        stored = sum(part.get("stored_bytes", 0) for part in _parts(device, stage))
        if stage["stored_bytes"] != stored:
            yield f"stage {j}: stored_bytes is {stage['stored_bytes']}, recomputed {stored}"


def _cache_bytes(problem: Json, option: str) -> int:
    """KV cache of one layer: "4/kv8" has an 8-bit cache, a name without "/kv" a 16-bit one."""
    given, precision = problem["kv_bytes_per_layer"], option.partition("/kv")[2] or "16"
    size: int = given[precision] if isinstance(given, Mapping) else {"16": given}[precision]
    return size


def _end_bytes(problem: Json, device: Json, stage: Json) -> dict[str, int]:
    """Embedding and head, each where the stage has it; a tied table that both share on one stage at one option counts once."""
    chosen = {end: stage[f"{end}_option"] for end in _ENDS}
    found = {end: 0 if option is None else device[end][option]["resident_bytes"] for end, option in chosen.items()}
    if chosen["embedding"] == chosen["head"] and chosen["head"] is not None:
        whole = min(found.values()) if problem.get("tied_embeddings", False) else 0
        found["head"] -= device["head"][chosen["head"]].get("shared_bytes", whole)
    return found


def _parts(device: Json, stage: Json) -> list[Json]:
    """What a stage computes: its layers at their options, the embedding on the first stage, the head on the last."""
    ends = [device[end][stage[f"{end}_option"]] for end in _ENDS if stage[f"{end}_option"] is not None]
    return [device["options"][option] for option in stage["options"]] + ends


def _compute_ms(device: Json, stage: Json, phase: str, size: int) -> float:
    overhead = device.get("overhead_ms", {}).get(phase, 0.0)
    return overhead + math.fsum(part[f"{phase}_ms"][str(size)] for part in _parts(device, stage))


def _message_ms(problem: Json, a: str, b: str, payload_bytes: float) -> float:
    link = next(link for link in problem["links"] if (link["from"], link["to"]) == (a, b))
    return link["alpha_ms"] + payload_bytes / link["bytes_per_ms"]


def _phase_ms(problem: Json, plan: Json, phase: str, sizes: Sequence[int]) -> dict[str, list[list[float]]]:
    """Times of every micro-batch on every stage and link: {"stages": [N][m], "links": [N-1][m]}; a blocking send is its stage's time."""
    stages = plan["stages"]
    tokens = problem["workload"]["prompt_tokens"] if phase == "prefill" else 1
    compute = [[_compute_ms(_device(problem, stage), stage, phase, size) for size in sizes] for stage in stages]
    names = [stage["device"] for stage in stages]
    links = [
        [_message_ms(problem, a, b, size * tokens * problem["activation_bytes_per_token"]) for size in sizes]
        for a, b in itertools.pairwise(names)
    ]
    if problem["overlapped_sends"]:
        return {"stages": compute, "links": links}
    for stage, link in zip(compute, links, strict=False):
        stage[:] = [work + send for work, send in zip(stage, link, strict=True)]
    return {"stages": compute, "links": []}


def _times_ms(problem: Json, plan: Json) -> tuple[float, float]:
    """Prefill and decode time of one batch (method, section 5; ragged sizes: the largest first, then the rest at the slowest pace)."""
    sizes, tokens = _sizes(problem, plan), problem["workload"]["new_tokens"]
    passes = {}
    for phase in _PHASES:
        times = _phase_ms(problem, plan, phase, sizes[phase])
        largest = sizes[phase].index(max(sizes[phase]))
        resources = times["stages"] + times["links"]
        first = math.fsum(resource[largest] for resource in resources)
        passes[phase] = first + max(math.fsum(resource) - resource[largest] for resource in resources)
        busiest = max(math.fsum(resource) for resource in resources)
    if tokens < 2:
        return passes["prefill"], 0.0
    names = [stage["device"] for stage in plan["stages"]]
    back = _message_ms(problem, names[-1], names[0], max(sizes["decode"]) * problem["token_bytes"]) if len(names) > 1 else 0.0
    back += problem.get("scheduler_ms", 0.0)
    return passes["prefill"], (tokens - 2) * max(busiest, first + back) + passes["decode"]


def _prices(problem: Json, plan: Json) -> Iterator[str]:
    sizes, workload = _sizes(problem, plan), problem["workload"]
    for j, stage in enumerate(plan["stages"]):
        for phase in _PHASES:
            expected = _compute_ms(_device(problem, stage), stage, phase, max(sizes[phase]))
            if _differs(stage[f"{phase}_ms"], expected):
                yield f"stage {j}: {phase}_ms is {stage[f'{phase}_ms']}, recomputed {expected}"
    prefill, decode = _times_ms(problem, plan)
    batches = workload["requests"] / workload["slots"]
    prefill_s, decode_s = prefill * batches / 1000, decode * batches / 1000
    total_s = prefill_s + decode_s
    speed = workload["requests"] * workload["new_tokens"] / total_s if total_s > 0 else None
    figures = {"prefill_s": prefill_s, "decode_s": decode_s, "total_s": total_s, "tokens_per_s": speed}
    for key, value in figures.items() if plan["schedule"] == "barrier" else ():  # no formula prices the continuous schedule
        stated = plan["predicted"][key]
        if (value is None) != (stated is None) or (value is not None and _differs(stated, value)):
            yield f"predicted.{key} is {stated}, recomputed {value}"
    yield from _quality(problem, plan, prefill + decode)


def _quality(problem: Json, plan: Json, total_ms: float) -> Iterator[str]:
    chosen = [option for stage in plan["stages"] for option in stage["options"]]
    ends = [(end, stage[f"{end}_option"]) for stage in plan["stages"] for end in _ENDS if stage[f"{end}_option"] is not None]
    of_ends = [problem.get("end_omega", {}).get(end, {}).get(option, 0.0) for end, option in ends]
    omega = math.fsum([*of_ends, *(problem["omega"][option][layer] for layer, option in enumerate(chosen))])
    if _differs(plan["omega_sum"], omega):
        yield f"omega_sum is {plan['omega_sum']}, recomputed {omega}"
    budget = problem["objective"].get("quality_budget")
    met = None if budget is None else omega <= budget + _RELATIVE * max(1.0, budget)
    if plan["quality_budget_met"] != met:
        yield f"quality_budget_met is {plan['quality_budget_met']}, recomputed {met}"
    if met is False and plan["certificate"]["status"] != "heuristic":
        yield f"the sum of omega is {omega}, above the quality budget {budget}"
    objective = total_ms + problem["objective"].get("theta_ms", 0.0) * omega
    if _differs(plan["objective_ms"], objective):
        yield f"objective_ms is {plan['objective_ms']}, recomputed {objective}"


def _certificate(plan: Json) -> Iterator[str]:
    certificate, objective = plan["certificate"], plan["objective_ms"]
    if _differs(certificate["objective"], objective):
        yield f"certificate.objective is {certificate['objective']}, the plan's objective_ms {objective}"
    bound, gap = certificate["bound"], certificate["gap"]
    if (bound is None) != (gap is None) or (bound is None) != (certificate["status"] == "heuristic"):
        yield f"certificate: bound {bound}, gap {gap} and status {certificate['status']} do not go together"
    elif bound is not None:
        if bound > objective * (1 + _RELATIVE):
            yield f"certificate.bound {bound} is above the plan's own objective {objective}"
        expected = (objective - bound) / objective if objective > 0 else 0.0
        if abs(gap - expected) > _RELATIVE:
            yield f"certificate.gap is {gap}, recomputed {expected}"
        if certificate["status"] == "optimal" and gap > certificate.get("gap_requested", 0.0) + _PROOF + _RELATIVE:
            yield f"certificate.status is optimal, but the gap {gap} is above the gap requested"
    found = certificate["candidates"]
    if found["pruned"] + found["solved"] > found["enumerated"]:
        yield f"certificate.candidates: {found['pruned']} pruned and {found['solved']} solved of {found['enumerated']} enumerated"
    for name, baseline in plan.get("baselines", {}).items():
        if baseline is not None and baseline["quality_budget_met"] is not False and baseline["objective_ms"] < objective * (1 - _RELATIVE):
            yield f"baseline {name} is better: {baseline['objective_ms']} against {objective}"


def _identity(problem: Json, plan: Json) -> Iterator[str]:
    if plan["problem_sha256"] != artifacts.body_digest(problem):
        yield "problem_sha256 is not the digest of this problem: the plan was made for another one"
    if plan["schedule"] != problem["schedule"]:
        yield f"schedule is {plan['schedule']}, the problem's {problem['schedule']}"
    if plan["source"] != problem["source"]:
        yield f"source is {plan['source']}, the problem's {problem['source']}"
    for entry in plan.get("binding", []):
        if entry["stage"] is not None and entry["stage"] >= len(plan["stages"]):
            yield f"binding names stage {entry['stage']}, the plan has {len(plan['stages'])}"
