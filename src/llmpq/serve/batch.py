"""Serve a batch of requests as a plan says: the entry point of the command line and of the workflow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import ServeError
from llmpq.model.spec import ModelSpec
from llmpq.model.tokenizer import load_tokenizer
from llmpq.quant.layer_index import Folders, find_layer_file, folder_list, layers_digest
from llmpq.quant.options import weight_option
from llmpq.serve import results
from llmpq.serve.job import Settings, check_plan, check_problem, check_requests, speed_claimed, stage_jobs
from llmpq.serve.journal import Journal
from llmpq.serve.run import Run


def serve(
    plan_path: str | Path,
    problem_path: str | Path | None,
    requests_path: str | Path,
    cluster: Mapping[str, Any],
    checkpoint_dir: str | Path,
    quantised_dir: Folders | None,
    out_dir: str | Path,
    settings: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serve the requests and write requests.jsonl, serve.json and timeline.json into ``out_dir``; returns serve.json.

    ``quantised_dir`` is a folder of layer groups and ends, or these themselves.
    ``cluster`` and ``settings`` are configuration groups (``settings``: serve, with ``slots`` and ``ignore_eos`` of the workload, and
    optionally ``experiment``). ``problem_path`` is only compared with the plan's problem_sha256. Finished requests are kept in a journal
    under ``out_dir``/journal until all are there: a run that failed goes on where it stopped, and reports the speed of what it served
    itself. Raises LlmpqError with one message; no process and no half-written file is left.
    """
    plan = artifacts.read(plan_path, "plan")
    if (why := planless.reason(plan)) is not None:
        raise ServeError(f"{plan_path}: strategy {plan['strategy']} has no plan to serve: {why}")
    workload = artifacts.read(requests_path, "workload")
    requests, options = workload["requests"], _settings(settings, workload)
    if problem_path is not None:
        check_problem(plan, artifacts.read(problem_path, "problem"), Path(plan_path), Path(problem_path))
    spec = ModelSpec.from_directory(checkpoint_dir)
    check_plan(plan, spec, options, Path(plan_path))
    check_requests(requests, spec, Path(requests_path))
    folders = folder_list(quantised_dir) if quantised_dir else None
    directories = {"checkpoint_dir": str(checkpoint_dir), "quantised_dir": [str(folder) for folder in folders] if folders else None}
    decode = load_tokenizer(checkpoint_dir).decode if (Path(checkpoint_dir) / "tokenizer.json").exists() else None
    jobs = stage_jobs(plan, cluster, spec, requests, options, directories)
    identity = {"plan_sha256": artifacts.body_digest(plan), "requests_sha256": artifacts.body_digest(workload)}
    key = {**identity, **_deciding(plan, options, Path(checkpoint_dir), folders)}
    out = Path(out_dir)
    with _writing(out):
        journal = Journal(out / "journal", key, say)
    with journal:
        run = Run(jobs, requests, journal, options, out / "logs", say)
        reports = run.to_the_end()
        labels = {**_labels(plan, cluster, settings), **identity, "weights_sha256": run.weights_sha256()}
        with _writing(out):
            results.write_requests(out / "requests.jsonl", requests, journal.finished, decode, options.margins)
            results.write_timeline(out / "timeline.json", jobs, reports, labels)
            document = artifacts.write(
                out / "serve.json",
                "serve",
                {**labels, **_figures(plan, jobs, reports, run, options)},
                source=labels["source"],
                inputs=[plan_path, requests_path],
                config={"cluster": cluster, "serve": settings},
            )
            journal.remove()
    return document


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """One clear message for a folder or a disk that refuses what is written here; other errors of the system are not its fault."""
    try:
        yield
    except OSError as error:
        raise ServeError(f"{error.filename or out}: cannot be written: {error.strerror}") from None


def _figures(
    plan: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]], run: Run, options: Settings
) -> dict[str, Any]:
    """The part of serve.json that the run has measured."""
    share = run.served / len(run.requests) if options.schedule == plan["schedule"] else None
    throughput = results.throughput(plan, reports[0], share)
    return {
        "backend": "cpu",
        "schedule": options.schedule,
        "requests": len(run.requests),
        "served_requests": run.served,
        "resumed_requests": len(run.requests) - run.served,
        "new_tokens": reports[0]["tokens"],
        "load_s": run.load_s,
        "restarts": run.restarts,
        "speed_claimed": speed_claimed(jobs),
        "throughput": throughput,
        "stages": results.stage_rows(plan, reports, throughput["measured"]["total_s"]),
    }


def _settings(values: Mapping[str, Any], workload: Mapping[str, Any]) -> Settings:
    known = {key: value for key, value in values.items() if key in Settings.__dataclass_fields__ and value is not None}
    known.setdefault("slots", len(workload["requests"]))
    known.setdefault("ignore_eos", workload.get("ignore_eos", False))
    return Settings(**known)


def _labels(plan: Mapping[str, Any], cluster: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    emulated = any(kind.get("source") == "emulated" for kind in cluster["types"].values())
    experiment = {"experiment": settings["experiment"]} if "experiment" in settings else {}
    return {**experiment, "strategy": plan["strategy"], "source": "emulated" if emulated else "measured"}


def _deciding(plan: Mapping[str, Any], options: Settings, checkpoint: Path, quantised: list[Path] | None) -> dict[str, Any]:
    """What beside plan and requests decides the tokens; weights by the digests of layers and ends and the checkpoint's sizes and times."""
    layers = [option for stage in plan["stages"] for option in stage["options"]]
    ends = {"embedding": plan["stages"][0]["embedding_option"], "head": plan["stages"][-1]["head_option"]}
    files = [find_layer_file(quantised, layer, option) for layer, option in enumerate(layers) if quantised and option != "32"]
    files += [find_layer_file(quantised, end, option) for end, option in ends.items() if quantised and weight_option(option).quantised]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(checkpoint.glob("*.safetensors"))]
    weights = artifacts.digest({"layers": layers_digest(files), "checkpoint": states, "options": layers})
    return {"weights": weights, "ignore_eos": options.ignore_eos, "ends": ends}
