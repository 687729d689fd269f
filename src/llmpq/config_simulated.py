"""Experiments on devices that are not here: which they are, and what they cannot ask for."""

from collections.abc import Mapping
from typing import Any


def is_simulated(experiment: Mapping[str, Any]) -> bool:
    """Whether an experiment is planned for data-sheet devices and simulated, since nothing of it can be run here (launch ``none``)."""
    return bool(experiment["cluster"]["launch"] == "none")


def check_simulated(experiment: Mapping[str, Any], fail: Any) -> None:
    """``fail`` (key, why) at what a cluster of the catalogue cannot do, and at catalogue devices in a cluster that would be run."""
    cluster = experiment["cluster"]
    for member in cluster["members"]:
        device = cluster["types"][member["device"]]
        if is_simulated(experiment) != (device["source"] == "catalogue"):
            where, why = f"cluster.members[{member['name']}].device", "comes from data sheets (source catalogue) and cannot be run"
            if is_simulated(experiment):
                fail(where, f"'{device['name']}' has source '{device['source']}', but launch 'none' is for data-sheet devices alone")
            fail(where, f"'{device['name']}' {why}; use launch none")
    if not is_simulated(experiment):
        return
    if experiment["model"]["shape"] is None:
        fail(
            "model.shape", f"is missing, but the devices of cluster '{cluster['name']}' are priced from it (see config/model/opt-30b.yaml)"
        )
    if experiment["serve"]["schedule"] != "barrier":
        fail("serve.schedule", f"is '{experiment['serve']['schedule']}'; data-sheet devices are simulated under 'barrier' alone")
    for longest in ("prompt_tokens", "new_tokens"):
        if experiment["workload"][f"{longest}_min"] not in (None, experiment["workload"][longest]):
            fail(f"workload.{longest}_min", "differs from the longest, but data-sheet devices are simulated with equal requests alone")
