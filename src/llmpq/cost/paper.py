"""problem.json of catalogue devices: a row of config/paper.yaml (cluster, model, batch) and a kernel generation in, numbers out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llmpq import artifacts
from llmpq.cost import stand_in
from llmpq.cost.catalogue import END_OPTIONS, HALF_BYTES, Peak, Shape, device_table, kv_layer_bytes, link_table
from llmpq.cost.kernels import ARCHITECTURES, GENERATIONS
from llmpq.errors import ConfigError
from llmpq.plan.microbatch import candidates, needed_sizes

TOKEN_BYTES = 8
DEFAULT_OBJECTIVE = {"quality_budget": 1.0}


def paper_rows(config: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of config/paper.yaml by name."""
    return _read(Path(config) / "paper.yaml")["rows"]


def paper_problem(
    config: str | Path, row: str, generation: str, objective: Mapping[str, float] | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """(body of problem.json, the configuration files it was made from).

    ``objective`` is ``{"theta_ms": …}`` or ``{"quality_budget": …}`` (default: no worse than uniform 4 bit). Raises ConfigError naming
    file and key for an unknown row, generation, device or model, or a missing figure.
    """
    config = Path(config)
    rows = paper_rows(config)
    if row not in rows:
        raise ConfigError(f"{config / 'paper.yaml'}: unknown row '{row}'; rows are {', '.join(rows)}")
    chosen = rows[row]
    files = [config / "paper.yaml", config / "cluster" / f"{chosen['cluster']}.yaml", config / "model" / f"{chosen['model']}.yaml"]
    cluster, model = _read(files[1]), _read(files[2])
    kinds = {}
    for name in dict.fromkeys(member["device"] for member in cluster["members"]):
        files.append(config / "device" / f"{name}.yaml")
        kinds[name] = _read(files[-1])
        _check_device(files[-1], kinds[name])
    if not model.get("shape"):
        raise ConfigError(f"{files[2]}: key 'shape' is missing; catalogue problems need the model's sizes (see config/model/opt-30b.yaml)")
    shape = Shape(layers=int(model["layers"]), **model["shape"])
    ends = model.get("end_options") or END_OPTIONS
    body = catalogue_problem(f"{row}-{generation}", str(model["name"]), shape, cluster, kinds, chosen, generation, objective, ends)
    return body, files


def catalogue_problem(
    name: str,
    model: str,
    shape: Shape,
    cluster: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]],
    workload: Mapping[str, Any],
    generation: str,
    objective: Mapping[str, float] | None = None,
    end_options: Sequence[str] = END_OPTIONS,
    micro_batches: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Body of problem.json for ``cluster`` (``members`` with name, device, node; ``ethernet_gbit_s``) of device ``kinds``.

    ``workload``: slots, prompt_tokens, new_tokens and, where more requests come than are resident, requests. ``micro_batches``: the sizes
    to try, by phase (default: every distinct one).
    """
    if generation not in GENERATIONS:
        raise ConfigError(f"unknown kernel generation '{generation}'; generations are {', '.join(GENERATIONS)}")
    slots, prompt, new = (int(workload[key]) for key in ("slots", "prompt_tokens", "new_tokens"))
    listed = dict(micro_batches or {})
    sizes = needed_sizes(candidates(slots, listed.get("prefill"), listed.get("decode")))
    devices = [
        device_table(member["name"], kinds[member["device"]], shape, generation, workload, sizes, end_options)
        for member in cluster["members"]
    ]
    offered = dict.fromkeys(option for device in devices for option in device["options"])
    options = tuple(option for option in ("16", "8", "w8a8", "4", "3") if option in offered)
    return {
        "name": name,
        "description": f"{stand_in.LABEL}; times are a roofline of data-sheet peaks with the stated kernel efficiencies '{generation}'",
        "source": "catalogue",
        "model": {"name": model, "layers": shape.layers},
        "workload": {"requests": int(workload.get("requests", slots)), "slots": slots, "prompt_tokens": prompt, "new_tokens": new},
        "schedule": "barrier",
        "overlapped_sends": True,
        "options": list(options),
        "end_options": list(end_options),
        "tied_embeddings": shape.tied_embeddings,
        "reference_option": stand_in.REFERENCE_OPTION,
        **({"micro_batches": listed} if listed else {}),
        "kv_bytes_per_layer": kv_layer_bytes(shape, slots, prompt + new),
        "activation_bytes_per_token": shape.hidden * HALF_BYTES,
        "token_bytes": TOKEN_BYTES,
        "devices": devices,
        "links": link_table(cluster["members"], kinds, float(cluster["ethernet_gbit_s"])),
        "omega": stand_in.omega(shape.layers, options),
        **({"end_omega": ends} if any((ends := stand_in.end_omega(end_options)).values()) else {}),
        "objective": dict(DEFAULT_OBJECTIVE if objective is None else objective),
    }


def write_paper_problem(
    out: str | Path, config: str | Path, row: str, generation: str, objective: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Write the problem of one row; returns the document."""
    body, files = paper_problem(config, row, generation, objective)
    settings = {"row": row, "generation": generation, "objective": objective}
    return artifacts.write(out, "problem", body, source="catalogue", inputs=files, config=settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path}: no such file; the folder has: {known}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(found).__name__}")
    return found


def _check_device(path: Path, kind: Mapping[str, Any]) -> None:
    peak = kind.get("peak")
    if not isinstance(peak, dict):
        raise ConfigError(f"{path}: key 'peak' is missing; a catalogue device needs its data-sheet figures (see config/device/t4.yaml)")
    for key in Peak.__dataclass_fields__:
        if key not in peak:
            raise ConfigError(f"{path}: key 'peak.{key}' is missing; take it from the device's data sheet")
    if peak["architecture"] not in ARCHITECTURES:
        raise ConfigError(f"{path}: key 'peak.architecture' is '{peak['architecture']}'; known are {', '.join(ARCHITECTURES)}")
