"""Serve a batch of requests as a plan says: the entry point of the command line and of the workflow."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ServeError
from llmpq.model.spec import ModelSpec
from llmpq.serve import results
from llmpq.serve.job import Settings, check_plan, check_problem, check_requests, stage_jobs
from llmpq.serve.journal import Journal
from llmpq.serve.launch import StageLostError, run_stages

BACKOFF_S = 1.0  # before the first automatic restart; doubled each time


def serve(
    plan_path: str | Path,
    problem_path: str | Path | None,
    requests_path: str | Path,
    cluster: Mapping[str, Any],
    checkpoint_dir: str | Path,
    quantised_dir: str | Path | None,
    out_dir: str | Path,
    settings: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serve the requests and write requests.jsonl, serve.json and timeline.json into ``out_dir``; returns serve.json.

    ``cluster`` and ``settings`` are configuration groups (``settings``: serve, with ``slots`` and ``ignore_eos`` of the workload, and
    optionally ``experiment``). ``problem_path`` is only compared with the plan's problem_sha256. Finished requests are kept in a journal
    under ``out_dir``/journal until all are there: a run that failed goes on where it stopped. Raises LlmpqError with one message; no
    process and no half-written file is left.
    """
    plan = artifacts.read(plan_path, "plan")
    workload = artifacts.read(requests_path, "workload")
    names = {key: settings[key] for key in ("experiment", "backend") if key in settings}
    options = _settings(settings, workload)
    out = Path(out_dir)
    spec = ModelSpec.from_directory(checkpoint_dir)
    if problem_path is not None:
        check_problem(plan, artifacts.read(problem_path, "problem"), Path(plan_path), Path(problem_path))
    check_plan(plan, spec, Path(plan_path))
    check_requests(workload["requests"], spec, Path(requests_path))
    directories = {"checkpoint_dir": Path(checkpoint_dir), "quantised_dir": Path(quantised_dir) if quantised_dir else None}
    jobs = stage_jobs(plan, cluster, spec, workload["requests"], options, directories)
    identity = {
        "plan_sha256": artifacts.body_digest(plan),
        "requests_sha256": artifacts.body_digest(workload),
    }
    deciding = {
        "weights": _weights_key(plan, Path(checkpoint_dir), directories["quantised_dir"]),
        "ignore_eos": options.ignore_eos,
        "end_option": options.end_option,
    }
    with Journal(out / "journal", {**identity, **deciding}, say) as journal:
        run = _Run(jobs, workload["requests"], journal, options, out / "logs", say)
        reports = run.to_the_end()
        identity["weights_sha256"] = run.weights_sha256()
        results.write_requests(
            out / "requests.jsonl", workload["requests"], journal.finished, Path(checkpoint_dir) / "tokenizer.json", options.margins
        )
        emulated = any(kind.get("source") == "emulated" for kind in cluster["types"].values())
        source = "emulated" if emulated else "measured"
        results.write_timeline(out / "timeline.json", jobs, reports, {**identity, **names, "strategy": plan["strategy"], "source": source})
        figures = results.throughput(plan, reports[0], run.served / len(workload["requests"]))
        body = {
            **({"experiment": names["experiment"]} if "experiment" in names else {}),
            "strategy": plan["strategy"],
            **identity,
            "backend": "cpu",
            "source": source,
            "schedule": options.schedule,
            "requests": len(workload["requests"]),
            "served_requests": run.served,
            "resumed_requests": len(workload["requests"]) - run.served,
            "new_tokens": reports[0]["tokens"],
            "load_s": run.load_s,
            "restarts": run.restarts,
            "throughput": figures,
            "stages": results.stage_rows(plan, reports, figures["measured"]["total_s"]),
        }
        document = artifacts.write(
            out / "serve.json",
            "serve",
            body,
            source=source,
            inputs=[plan_path, requests_path],
            config={"cluster": cluster, "serve": settings},
        )
        journal.remove()
    return document


def _settings(values: Mapping[str, Any], workload: Mapping[str, Any]) -> Settings:
    known = {key: value for key, value in values.items() if key in Settings.__dataclass_fields__ and value is not None}
    known.setdefault("slots", len(workload["requests"]))
    known.setdefault("ignore_eos", workload.get("ignore_eos", False))
    return Settings(**known)


def _weights_key(plan: Mapping[str, Any], checkpoint: Path, quantised: Path | None) -> str:
    """Changes whenever other weights would be served: from the layer files' own digests, and the checkpoint files' sizes and times."""
    from llmpq.quant.files import find_layer_file, layers_digest

    options = [option for stage in plan["stages"] for option in stage["options"]]
    files = [find_layer_file(quantised, layer, option) for layer, option in enumerate(options) if quantised and option != "32"]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(checkpoint.glob("*.safetensors"))]
    return artifacts.digest({"layers": layers_digest(files), "checkpoint": states, "options": options})


@dataclass
class _Run:
    """One or more attempts to serve what the journal does not have yet; ``served`` counts the requests of the last attempt."""

    jobs: Sequence[dict[str, Any]]
    requests: Sequence[Mapping[str, Any]]
    journal: Journal
    settings: Settings
    log_dir: Path
    say: Callable[[str], None]
    served: int = 0
    restarts: int = 0
    load_s: float = 0.0
    tokens: int = 0
    warm_at: float = 0.0
    weights: dict[int, list[str]] = field(default_factory=dict)

    def to_the_end(self) -> list[dict[str, Any]]:
        while True:
            try:
                return self._attempt()
            except ServeError as error:
                kept = f"{len(self.journal.finished)} of {len(self.requests)} requests are finished and kept in {self.journal.path}"
                if self.restarts >= self.settings.max_restarts or not isinstance(error, StageLostError):
                    raise ServeError(f"{error}\n{kept}; run the same command again to serve the missing ones") from None
                self.restarts += 1
                self.say(f"{error}\n{kept}; restart {self.restarts} of {self.settings.max_restarts}")
                time.sleep(BACKOFF_S * 2 ** (self.restarts - 1))

    def _attempt(self) -> list[dict[str, Any]]:
        missing = [request for request in self.requests if request["id"] not in self.journal.finished]
        self.served, self.load_s, self.tokens = len(missing), 0.0, 0
        jobs = [{**job, "requests": missing} if job["rank"] == 0 else job for job in self.jobs]
        limits = {"load_timeout_s": self.settings.load_timeout_s, "timeout_s": self.settings.timeout_s}
        return run_stages(jobs, self.log_dir, port=self.settings.port, **limits, on_event=self._on_event)

    def weights_sha256(self) -> str:
        """Digest of the layers that were served, whatever the cut: the same weights evaluated in one piece give the same."""
        from llmpq.quant.files import combined_digest

        return combined_digest(digest for _, digests in sorted(self.weights.items()) for digest in digests)

    def _on_event(self, rank: int, event: Mapping[str, Any]) -> None:
        if event["event"] == "finished":
            self.journal.append(event["requests"])
        elif event["event"] == "loaded":
            self.load_s = max(self.load_s, event["seconds"])
            self.weights[rank] = event["layer_digests"]
            self.say(f"{self.jobs[rank]['title']} loaded in {event['seconds']:.1f} s")
        elif event["event"] == "warm":
            self.warm_at = time.monotonic()
        elif event["event"] == "progress" and self.warm_at:
            self._progress(event["tokens"])

    def _progress(self, tokens: int) -> None:
        seconds = time.monotonic() - self.warm_at
        wanted = sum(request["max_new_tokens"] for request in self.requests[-self.served :])
        self.say(f"{tokens} of at most {wanted} tokens, {len(self.journal.finished)} requests finished, {tokens / seconds:.1f} tokens/s")
