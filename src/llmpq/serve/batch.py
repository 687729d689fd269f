"""Serve a batch of requests as a plan says: the entry point of the command line and of the workflow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import ServeError
from llmpq.model.spec import ModelSpec
from llmpq.quant.layer_index import Folders, find_layer_file, folder_list, layers_digest
from llmpq.quant.options import layer_option, weight_option
from llmpq.serve import results
from llmpq.serve.job import Settings, check_plan, check_problem, speed_claimed, stage_jobs
from llmpq.serve.journal import Journal
from llmpq.serve.output import Outputs, write_results, writing
from llmpq.serve.place import cluster_of, longest_sequence, placement_of, slots_of
from llmpq.serve.prediction import Prediction, predict
from llmpq.serve.prompts import Prompts
from llmpq.serve.request import Limits
from llmpq.serve.request_file import Intake, is_artifact, read_artifact, read_lines
from llmpq.serve.run import Run


def serve(
    plan_path: str | Path,
    problem_path: str | Path | None,
    requests_path: str | Path,
    cluster: Mapping[str, Any] | None,
    checkpoint_dir: str | Path,
    quantised_dir: Folders | None,
    out: str | Path,
    settings: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serve the requests and write the results, serve.json, timeline.json and its simulation; returns serve.json.

    ``requests_path`` is a workload artifact, all of whose requests must be good, or a file of JSON lines (llmpq.serve.request_file), of
    which bad ones get a line that says so among the results and the others are served. ``out`` is a folder, or a file of JSON lines
    for the results (llmpq.serve.output). ``quantised_dir`` is a folder of layer groups and ends, or these themselves.
    ``cluster`` and ``settings`` are configuration groups (``settings``: serve, with ``slots`` and ``ignore_eos`` of the workload, and
    optionally ``experiment``); the plan's budgets and schedule count where none are given, and slots are all that its micro-batches hold.
    ``problem_path`` is compared with the plan's problem_sha256, and prices the simulation that the run is compared with. Finished
    requests are kept in a journal until all are there: a run that failed goes on where it stopped, and reports the speed of what it served
    itself. Raises LlmpqError with one message; no process and no half-written file is left.
    """
    plan = artifacts.read(plan_path, "plan")
    if (why := planless.reason(plan)) is not None:
        raise ServeError(f"{plan_path}: strategy {plan['strategy']} has no plan to serve: {why}")
    problem = None if problem_path is None else artifacts.read(problem_path, "problem")
    if problem is not None:
        check_problem(plan, problem, Path(plan_path), Path(str(problem_path)))
    cluster = cluster_of(plan) if cluster is None else cluster
    settings = {"schedule": plan["schedule"], **settings}
    spec, prompts = ModelSpec.from_directory(checkpoint_dir), Prompts(checkpoint_dir)
    places = Outputs.at(Path(out), Path(requests_path))
    if is_artifact(Path(requests_path)):
        intake = read_artifact(Path(requests_path), spec)
        options = _settings(settings, slots_of(plan, problem, len(intake.requests)), intake.ignore_eos)
        check_plan(plan, spec, options, Path(plan_path))
    else:
        options = _settings({**settings, "ignore_eos": False}, slots_of(plan, problem), False)
        check_plan(plan, spec, options, Path(plan_path))
        intake = read_lines(Path(requests_path), prompts, _limits(plan, cluster, spec, options), say)
    folders = folder_list(quantised_dir) if quantised_dir else None
    directories = {"checkpoint_dir": str(checkpoint_dir), "quantised_dir": [str(folder) for folder in folders] if folders else None}
    jobs = stage_jobs(plan, cluster, spec, intake.requests, options, directories)
    identity = {"plan_sha256": artifacts.body_digest(plan), "requests_sha256": intake.sha256}
    key = {**identity, **_deciding(plan, options, Path(checkpoint_dir), folders, spec)}
    with writing(places.results):
        journal = Journal(places.journal, key, say)
    with journal:
        run = Run(jobs, intake.requests, journal, options, places.logs, say, placement_of(plan, cluster), _name(settings, cluster, plan))
        reports = run.to_the_end()
        labels = {**_labels(plan, cluster, settings), **identity, "weights_sha256": run.weights_sha256()}
        with writing(places.results):
            write_results(places.results, intake, journal.finished, prompts.decode, options, labels["weights_sha256"])
            prediction = _prediction(plan, problem, run, options, intake)
            results.write_timeline(places.timeline, jobs, reports, labels)
            results.write_simulated_timeline(places.simulated, plan, prediction.simulation, labels)
            body = {**labels, **_figures(plan, jobs, reports, run, options, intake, prediction)}
            inputs, config = [plan_path, requests_path], {"cluster": cluster, "serve": settings}
            document = artifacts.write(places.serve, "serve", body, source=labels["source"], inputs=inputs, config=config)
            journal.remove()
    return document


def _name(settings: Mapping[str, Any], cluster: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """For whoever looks at a queue."""
    return f"serve-{settings.get('experiment', cluster['name'])}-{plan['strategy']}"


def _figures(
    plan: Mapping[str, Any],
    jobs: Sequence[Mapping[str, Any]],
    reports: Sequence[Mapping[str, Any]],
    run: Run,
    options: Settings,
    intake: Intake,
    prediction: Prediction,
) -> dict[str, Any]:
    """The part of serve.json that the run has measured, predicted beside it."""
    measured = results.measured_throughput(reports[0])
    sampled = sum("sampling" in request for request in run.requests)
    return {
        "backend": "cpu",
        "schedule": options.schedule,
        "requests": len(run.requests),
        "served_requests": run.served,
        "resumed_requests": len(run.requests) - run.served,
        **(
            {} if intake.artifact else {"refused_requests": len(intake.refusals), "refusals": intake.reasons(), "sampled_requests": sampled}
        ),
        "new_tokens": reports[0]["tokens"],
        "load_s": run.load_s,
        "restarts": run.restarts,
        "speed_claimed": speed_claimed(jobs, None if run.placement is None else len(jobs)),
        "throughput": {"measured": measured, "predicted": prediction.throughput},
        "stages": results.stage_rows(plan, reports, measured["total_s"], prediction.simulation, priced="backend" not in plan),
    }


def _prediction(plan: Mapping[str, Any], problem: Mapping[str, Any] | None, run: Run, options: Settings, intake: Intake) -> Prediction:
    """For the requests that this run served, with the tokens that they made."""
    tokens = [len(run.journal.finished[request["id"]]["tokens"]) for request in run.attempted]
    share = run.served / len(run.requests) if intake.artifact else None
    return predict(plan, problem, run.attempted, tokens, options, share)


def _settings(values: Mapping[str, Any], slots: int, ignore_eos: bool) -> Settings:
    known = {key: value for key, value in values.items() if key in Settings.__dataclass_fields__ and value is not None}
    known.setdefault("slots", slots)
    known.setdefault("ignore_eos", ignore_eos)
    return Settings(**known)


def _limits(plan: Mapping[str, Any], cluster: Mapping[str, Any], spec: ModelSpec, options: Settings) -> Limits:
    """How long requests may be: what the model takes, or less where the plan's memory ends before that."""
    longest = longest_sequence(plan, cluster, spec, options.slots)
    in_memory = f"which is what the plan's memory holds for each of {options.slots} requests at a time"
    why = "which is what the model takes" if longest == spec.max_context else in_memory
    return Limits(spec.vocab, longest, why, options.max_new_tokens, options.seed)


def _labels(plan: Mapping[str, Any], cluster: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    emulated = any(kind.get("source") == "emulated" for kind in cluster["types"].values())
    experiment = {"experiment": settings["experiment"]} if "experiment" in settings else {}
    return {**experiment, "strategy": plan["strategy"], "source": "emulated" if emulated else "measured"}


def _deciding(
    plan: Mapping[str, Any], options: Settings, checkpoint: Path, quantised: list[Path] | None, spec: ModelSpec
) -> dict[str, Any]:
    """What beside plan and requests decides the tokens; weights by the digests of layers and ends and the checkpoint's sizes and times.

    Schedule and slots make the shapes of the calls, on which near-ties depend; tokens that end a text and the tokenizer, where it ends.
    """
    layers = [option for stage in plan["stages"] for option in stage["options"]]
    ends = {"embedding": plan["stages"][0]["embedding_option"], "head": plan["stages"][-1]["head_option"]}
    weights_of = [layer_option(option).weights.name for option in layers]
    files = [find_layer_file(quantised, layer, option) for layer, option in enumerate(weights_of) if quantised and option != "32"]
    files += [find_layer_file(quantised, end, option) for end, option in ends.items() if quantised and weight_option(option).quantised]
    read = [*sorted(checkpoint.glob("*.safetensors")), *(path for path in [checkpoint / "tokenizer.json"] if path.is_file())]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in read]
    weights = artifacts.digest({"layers": layers_digest(files), "checkpoint": states, "options": layers})
    shapes = {"schedule": options.schedule, "slots": options.slots}
    return {"weights": weights, "ignore_eos": options.ignore_eos, "eos": list(spec.eos_token_ids), "ends": ends, **shapes}
