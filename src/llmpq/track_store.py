"""The runs of one experiment and configuration in MLflow: found again by their identity, opened, filled and closed."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import LlmpqError, first_line

_NOT_RESULT = ("tracking", "suite", "strategies")  # parts of the configuration that change no result of a strategy


def config_digest(experiment: Mapping[str, Any]) -> str:
    """Digest of what shapes the results of one strategy of an experiment."""
    return artifacts.digest({key: value for key, value in experiment.items() if key not in _NOT_RESULT})


@contextmanager
def one_message() -> Iterator[None]:
    """Trouble with the tracking server as one LlmpqError, whenever it comes, and without a password in it."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise LlmpqError(f"MLflow cannot be used: {without_password(first_line(error))}") from None


def without_password(text: str) -> str:
    """``text`` with user and password taken out of every URL in it."""
    return re.sub(r"://[^/@\s]*@", "://", text)


class Store:
    """The runs of one experiment and configuration in MLflow."""

    def __init__(self, experiment: Mapping[str, Any], root: Path) -> None:
        # A server that does not answer is an error within a minute, not after MLflow's seven tries of two minutes each.
        for key, value in (("DISABLE_TELEMETRY", "true"), ("HTTP_REQUEST_MAX_RETRIES", "2"), ("HTTP_REQUEST_TIMEOUT", "15")):
            os.environ.setdefault(f"MLFLOW_{key}", value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes

        self._name, self._digest = str(experiment["name"]), config_digest(experiment)
        tracking = experiment["tracking"]
        local = (root / "results" / "mlflow").resolve()
        uri = tracking["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{local}/mlflow.db"
        self.shown_uri = without_password(uri)
        title = f"{tracking['prefix']}/{self._name}"
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(title)
        if found and found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        place = f"{local}/artifacts/{self._name}" if uri.startswith("sqlite:///") else None
        self._id = found.experiment_id if found else self._client.create_experiment(title, artifact_location=place)
        self._mine = f"tags.`llmpq.config_sha256` = '{self._digest}'"
        self._runs = {run.data.tags["llmpq.identity"]: run for run in self._client.search_runs([self._id], self._mine, max_results=5000)}
        self._ends: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []

    def open(self, strategy: str, label: str | None, started: float | None = None, ended: float | None = None) -> str:
        """The id of the run of a stage (``label``) or of the parent (None), created where this configuration has none yet."""
        identity = "/".join([self._name, strategy, self._digest, *([label] if label else [])])
        run = self._runs.get(identity)
        if run is None:
            tags = {"llmpq.identity": identity, "llmpq.experiment": self._name, "llmpq.strategy": strategy}
            tags |= {"llmpq.config_sha256": self._digest, "llmpq.role": "stage" if label else "parent"}
            if label:
                tags |= {"llmpq.stage": label, "mlflow.parentRunId": self.open(strategy, None)}
            begin = int(started * 1000) if started else None
            name = label if label else f"{self._name} {strategy}"
            run = self._runs[identity] = self._client.create_run(self._id, start_time=begin, tags=tags, run_name=name)
        run_id = str(run.info.run_id)
        if ended:
            self._ends[run_id] = int(ended * 1000)
        if not any(row["run_id"] == run_id for row in self._rows):
            self._rows.append({"strategy": strategy, "stage": label, "run_id": run_id})
        return run_id

    def rows(self) -> list[dict[str, Any]]:
        """Strategy, stage (None: the parent) and id of every run opened here."""
        return list(self._rows)

    def children(self) -> list[str]:
        return [row["run_id"] for row in self._rows if row["stage"]]

    def log(self, run_id: str, parameters: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Add metrics, and those parameters that the run does not have yet (MLflow never changes one)."""
        from mlflow.entities import Metric, Param

        had = self._client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in parameters.items() if key not in had]
        now = int(time.time() * 1000)
        self._client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])
        for first in range(0, len(new), 100):  # MLflow takes 100 at a time
            self._client.log_batch(run_id, params=new[first : first + 100])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)

    def artifact(self, run_id: str, path: Path) -> None:
        self._client.log_artifact(run_id, str(path))

    def text(self, run_id: str, text: str, name: str) -> None:
        self._client.log_text(run_id, text, name)

    def close(self, run_id: str, status: str) -> None:
        """End a run; one that finished loses the error of an earlier attempt."""
        if status == "FINISHED" and "llmpq.error" in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, "llmpq.error")
        self._client.set_terminated(run_id, status, self._ends.get(run_id))

    def mend(self, strategy: str, label: str) -> None:
        """A stage that finished now: where its run says FAILED, it no longer does."""
        run = self._runs.get("/".join([self._name, strategy, self._digest, label]))
        if run is not None and run.info.status != "FINISHED":
            self.close(str(run.info.run_id), "FINISHED")

    def end_unfinished(self) -> None:
        """Whatever an interrupted recording of this configuration left RUNNING is FAILED until it is recorded again."""
        for run in self._client.search_runs([self._id], f"attributes.status = 'RUNNING' and {self._mine}", max_results=5000):
            self._client.set_terminated(str(run.info.run_id), "FAILED")
