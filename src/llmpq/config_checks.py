"""What a dataclass cannot say: ranges, names that must exist elsewhere, text regions that must not overlap."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from llmpq.config import SHARED
from llmpq.config_evaluate import BENCHMARK_TEXTS, TASKS, TEXTS, evaluation_texts, used_texts
from llmpq.config_simulated import check_simulated
from llmpq.emulation import MAX_SHARED_QUOTA, shared_core_quota
from llmpq.errors import ConfigError
from llmpq.plan.strategies import STRATEGIES
from llmpq.quant.options import END_OPTIONS, KV_OPTIONS, OPTIONS, known_options, options_of_end

CHOICES = {
    "model.source": ("package", "path", "hub", "shape"),
    "cluster.launch": ("local", "hetjob", "nodelist", "none"),
    "quantizer.method": ("gptq", "rtn", "auto-gptq"),
    "indicator.method": ("residual-error", "variance", "gptq-loss", "hessian", "gradient", "divergence", "random"),
    "indicator.rounding": ("deterministic", "stochastic"),
    "indicator.moment": ("variance", "second"),
    "planner.solver": ("glpk", "highs"),
    "backend.name": ("native", "vllm"),
    "backend.plan_for": ("native", "vllm"),
    "serve.schedule": ("barrier", "continuous"),
    "kernels": ("2023", "today"),
}
NODE_LAUNCHES = ("hetjob", "nodelist")
DEVICE_CHOICES = {"kind": ("cpu", "gpu"), "source": ("emulated", "measured", "catalogue")}
REFERENCE_OPTION = "4"  # the unit of damage: the whole model at this option
POSITIVE = {
    "model": ("layers",),
    "workload": ("requests", "slots", "prompt_tokens", "prompt_tokens_min", "new_tokens", "new_tokens_min"),
    "profile": ("micro_batches", "prompt_tokens", "contexts", "repeats", "link_bytes"),
    "quantizer": ("damping", "layers_per_job", "calibration.windows", "calibration.tokens"),
    "planner": ("time_limit_s", "micro_batches.prefill", "micro_batches.decode", "pareto.memory_factors"),
    "serve": ("timeout_s", "load_timeout_s"),
    "evaluate": ("windows", "window_tokens", "stride", "questions"),
}
NOT_NEGATIVE = {
    "profile": ("warmup",),
    "planner": ("gap", "objective.theta_ms", "objective.quality_budget"),
    "serve": ("max_restarts",),
    "backend": ("port",),
    "cluster": ("link.delay_ms",),
}
NOT_EMPTY = (
    "model.kv_options",
    "profile.micro_batches",
    "profile.prompt_tokens",
    "profile.contexts",
    "planner.micro_batches.prefill",
    "planner.micro_batches.decode",
)
SOURCE_NEEDS = {"package": ("wheel", "member", "sha256"), "path": ("path",), "hub": ("path",), "shape": ()}
GROUPS = ("model", "cluster", "workload", "profile", "quantizer", "indicator", "planner", "backend", "serve", "evaluate", "tracking")


def check_experiment(name: str, experiment: Mapping[str, Any]) -> None:
    """Raise ConfigError at the first value of ``experiment`` that cannot be meant."""

    def fail(key: str, why: str) -> None:
        raise ConfigError(f"experiment '{name}': key '{key}': {why}")

    for group in GROUPS:
        if not re.fullmatch(r"[\w.-]+", experiment[group]["name"]) or set(experiment[group]["name"]) == {"."}:
            fail(f"{group}.name", f"is '{experiment[group]['name']}'; a name is part of a path: letters, digits, '_', '-' and '.' only")
    if not re.fullmatch(r"[\w-]+", experiment["suite"]):
        fail("suite", f"is '{experiment['suite']}'; a suite is a target of the workflow: letters, digits, '_' and '-' only")
    if experiment["name"] != name:
        fail("name", f"is '{experiment['name']}', but the file is {name}.yaml")
    for key, allowed in CHOICES.items():
        if _get(experiment, key) not in allowed:
            fail(key, f"unknown value '{_get(experiment, key)}'; known: {', '.join(map(str, allowed))}")
    _check_names(experiment["strategies"], tuple(STRATEGIES), "strategies", fail)
    _check_names(experiment["quantizer"]["options"], OPTIONS, "quantizer.options", fail, known_options())
    _check_end_options(experiment["model"]["end_options"], fail)
    _check_names(experiment["model"]["kv_options"], KV_OPTIONS, "model.kv_options", fail)
    _check_names(experiment["evaluate"]["texts"], TEXTS, "evaluate.texts", fail)
    if experiment["evaluate"]["tasks"]:
        _check_names(experiment["evaluate"]["tasks"], TASKS, "evaluate.tasks", fail)
    _check_names(experiment["profile"]["options"], OPTIONS, "profile.options", fail, known_options())
    for option in experiment["quantizer"]["options"]:
        if option not in experiment["profile"]["options"]:
            fail(
                "quantizer.options",
                f"offers '{option}', which profile.options does not time ({', '.join(experiment['profile']['options'])})",
            )
    for option in experiment["quantizer"]["options"]:
        if experiment["quantizer"]["method"] == "auto-gptq" and OPTIONS[option].outliers:
            fail("quantizer.options", f"offers '{option}', which method auto-gptq cannot make; leave it out")
    if REFERENCE_OPTION not in experiment["quantizer"]["options"]:
        fail("quantizer.options", f"lacks '{REFERENCE_OPTION}', in which all damage is measured")
    for key in ("workload.text", "quantizer.calibration.text"):
        _check_names([_get(experiment, key)], TEXTS, key, fail)
    for keys, least in ((POSITIVE, "more than 0"), (NOT_NEGATIVE, "0 or more")):
        for key in [f"{group}.{part}" for group, parts in keys.items() for part in parts]:
            value = _get(experiment, key)
            for number in [] if value is None else value if isinstance(value, list) else [value]:
                if number < 0 or (number == 0 and keys is POSITIVE):
                    fail(key, f"is {number}, expected {least}")
    if experiment["planner"]["pareto"]["points"] < 2:
        fail("planner.pareto.points", f"is {experiment['planner']['pareto']['points']}, expected 2 or more")
    for key in NOT_EMPTY:
        if _get(experiment, key) == []:
            fail(key, "is empty; list at least one")
    _check_regions(experiment, fail)
    _check_ranges(experiment, fail)
    _check_cluster(experiment["cluster"], fail)
    check_simulated(experiment, fail)
    if experiment["backend"]["name"] == "vllm":
        _check_vllm(experiment, fail)


def check_shared(composed: Mapping[str, Mapping[str, Any]]) -> None:
    """Entries of one name must be the same in every experiment, since their results are stored under that name."""
    seen: dict[tuple[str, str], tuple[str, Any]] = {}
    for name, experiment in composed.items():
        cluster = experiment["cluster"]
        wiring = {key: cluster[key] for key in ("launch", "members", "link")}
        entries = [(group, experiment[group]["name"], experiment[group]) for group in SHARED]
        entries += [("device", key, {k: v for k, v in device.items() if k != "memory_mib"}) for key, device in cluster["types"].items()]
        entries += [("cluster", cluster["name"], wiring)]
        entries += [("backend", "vllm", experiment["backend"]["compile"])] if experiment["backend"]["name"] == "vllm" else []
        entries += [("text", text, experiment["evaluate"]["sources"][text]) for text in BENCHMARK_TEXTS if text in used_texts(experiment)]
        for group, entry, value in entries:
            first, other = seen.setdefault((group, entry), (name, value))
            if other != value:
                mends = {
                    "device": "give one of them a file of its own in config/device, and a cluster that uses it",
                    "backend": "choose the same backend.compile for both",
                    "text": f"set evaluate.sources.{entry} to the same file in both",
                }
                mend = mends.get(group, f"give one of them another name (for example {group}.name={entry}-2)")
                told = f"experiments '{first}' and '{name}' change the {group} '{entry}' differently"
                raise ConfigError(f"{told}, but its results are stored under that name: {mend}")


def _get(experiment: Mapping[str, Any], key: str) -> Any:
    value: Any = experiment
    for part in key.split("."):
        value = value[part]
    return value


def _check_names(values: list[str], allowed: Collection[str], key: str, fail: Any, known: str = "") -> None:
    known = known or ", ".join(allowed)
    if not values:
        fail(key, f"is empty; known: {known}")
    for value in values:
        if value not in allowed:
            fail(key, f"unknown value '{value}'; known: {known}")
    if len(set(values)) < len(values):
        fail(key, f"names something twice: {', '.join(values)}")


def _check_end_options(options: list[str], fail: Any) -> None:
    """Each is one that embedding or head may have, and either end is left with one at least."""
    _check_names(options, dict.fromkeys(option for known in END_OPTIONS.values() for option in known), "model.end_options", fail)
    for end, known in END_OPTIONS.items():
        if not options_of_end(end, options):
            fail("model.end_options", f"is {options}, none of which the {end} may have; add one of {', '.join(known)}")


def _check_regions(experiment: Mapping[str, Any], fail: Any) -> None:
    """Calibration, prompts and evaluation are taken from parts of a text that do not overlap."""
    uses = [
        ("quantizer.calibration.region", [_get(experiment, "quantizer.calibration.text")]),
        ("workload.region", [experiment["workload"]["text"]]),
    ]
    uses += [("evaluate.region", evaluation_texts(experiment["evaluate"]))]
    taken: list[tuple[str, str, float, float]] = []
    for key, texts in uses:
        region = _get(experiment, key)
        if len(region) != 2 or not 0 <= region[0] < region[1] <= 1:
            fail(key, f"is {region}, expected [from, to] with 0 <= from < to <= 1")
        for text in texts:
            for other, other_text, start, end in taken:
                if text == other_text and region[0] < end and start < region[1]:
                    fail(
                        key,
                        f"{region} overlaps {other} [{start}, {end}] of the text '{text}'; calibration, prompts and evaluation must differ",
                    )
            taken.append((key, text, region[0], region[1]))


def _check_ranges(experiment: Mapping[str, Any], fail: Any) -> None:
    workload, objective = experiment["workload"], experiment["planner"]["objective"]
    for longest in ("prompt_tokens", "new_tokens"):
        if (workload[f"{longest}_min"] or 0) > workload[longest]:
            fail(f"workload.{longest}_min", f"is {workload[f'{longest}_min']}, more than workload.{longest} ({workload[longest]})")
    if workload["slots"] > workload["requests"]:
        fail("workload.slots", f"is {workload['slots']}, more than workload.requests ({workload['requests']})")
    if experiment["serve"]["schedule"] == "barrier" and workload["requests"] % workload["slots"]:
        why = f"the schedule 'barrier' serves full batches, and {workload['requests']} requests are no multiple of that"
        fail("workload.slots", f"is {workload['slots']}: {why}; choose another number, or serve=continuous")
    if (objective["theta_ms"] is None) == (objective["quality_budget"] is None):
        fail("planner.objective", "set exactly one of theta_ms and quality_budget (the other one null)")
    sizes = experiment["planner"]["micro_batches"]
    if sizes["prefill"] and sizes["decode"] and min(sizes["prefill"]) > max(sizes["decode"]):
        fail("planner.micro_batches", f"every prefill size {sizes['prefill']} is larger than every decode size {sizes['decode']}")
    if len(set(experiment["profile"]["link_bytes"])) < 2:
        fail("profile.link_bytes", f"is {experiment['profile']['link_bytes']}; a line through the times needs at least two sizes")
    if experiment["evaluate"]["window_tokens"] < 2:
        fail(
            "evaluate.window_tokens",
            f"is {experiment['evaluate']['window_tokens']}; a window's first token is not scored, so 2 or more",
        )
    if (stride := experiment["evaluate"]["stride"]) is not None and stride > experiment["evaluate"]["window_tokens"]:
        fail("evaluate.stride", f"is {stride}, more than evaluate.window_tokens ({experiment['evaluate']['window_tokens']})")
    if experiment["backend"]["port"] > 65535:
        fail("backend.port", f"is {experiment['backend']['port']}; a port is 0 (any free one) to 65535")
    model = experiment["model"]
    for key in SOURCE_NEEDS[model["source"]]:
        if not model[key]:
            fail(f"model.{key}", f"is empty, but model.source is '{model['source']}'")
    uri = experiment["tracking"]["uri"]
    if uri and re.search(r"://[^/@\s]*:[^/@\s]*@", uri):
        why = "holds a password, which would be kept with the results: put it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
        fail("tracking.uri", why + "or the whole URI in MLFLOW_TRACKING_URI")
    if not 0 < experiment["planner"]["gap"] < 1:
        fail("planner.gap", f"is {experiment['planner']['gap']}, expected a fraction between 0 and 1")


def _check_node(cluster: Mapping[str, Any], member: Mapping[str, Any], where: str, fail: Any) -> None:
    """A member on a node of a Slurm cluster: what Slurm is asked for can be granted."""
    device = cluster["types"][member["device"]]
    if member["cores"]:
        fail(f"{where}.cores", f"lists {member['cores']}, but with launch '{cluster['launch']}' Slurm chooses the cores; leave it out")
    if cluster["launch"] == "nodelist" and not member["node"]:
        fail(f"{where}.node", "is empty; with launch 'nodelist' it is the node's name in Slurm")
    others = [other["device"] for other in cluster["members"] if member["node"] and other["node"] == member["node"]]
    if set(others) != {member["device"]} and others:
        fail(f"{where}.node", f"'{member['node']}' holds devices of several types ({', '.join(sorted(set(others)))}); name a node for each")
    for part in ("mem_mb", "runtime_min"):
        if device["slurm"][part] <= 0:
            fail(f"cluster.types.{device['name']}.slurm.{part}", f"is {device['slurm'][part]}, expected more than 0")
    for part in ("partition", "gres", "constraint"):
        if re.search(r"[\s;]", device["slurm"][part]):
            fail(f"cluster.types.{device['name']}.slurm.{part}", f"is '{device['slurm'][part]}'; Slurm's names have no spaces")


def _check_vllm(experiment: Mapping[str, Any], fail: Any) -> None:
    """vLLM runs here on whole processor cores, a stage on cores of its own, and batches in its own way."""
    cluster = experiment["cluster"]
    if experiment["backend"]["plan_for"] != "vllm":
        fail("backend.plan_for", f"is '{experiment['backend']['plan_for']}', but vLLM serves only plans made for it; set it to vllm")
    if experiment["serve"]["schedule"] != "continuous":
        fail("serve.schedule", "is 'barrier', but vLLM gives a finished request's place to the next one at once; choose serve=continuous")
    if cluster["launch"] != "local":
        fail("cluster.launch", f"is '{cluster['launch']}', but vLLM is started on this machine only; export the plan for other hosts")
    for key in dict.fromkeys(member["device"] for member in cluster["members"]):
        if cluster["types"][key]["slowdown"] != 1:
            fail(f"cluster.types.{key}.slowdown", f"is {cluster['types'][key]['slowdown']}, but vLLM cannot be slowed down; choose 1")
    cores = [core for member in cluster["members"] for core in member["cores"]]
    if len(set(cores)) < len(cores):
        fail("cluster.members", "share cores, but vLLM binds each stage to cores of its own; choose another cluster")


def _check_cluster(cluster: Mapping[str, Any], fail: Any) -> None:
    """Members use known device types, have names of their own, and do not ask more of a core than it has."""
    if not cluster["members"]:
        fail("cluster.members", "is empty: a cluster needs at least one device")
    for key, device in cluster["types"].items():
        where = f"cluster.types.{key}"
        for part, allowed in DEVICE_CHOICES.items():
            if device[part] not in allowed:
                fail(f"{where}.{part}", f"unknown value '{device[part]}'; known: {', '.join(allowed)}")
        if device["name"] != key:
            fail(f"{where}.name", f"is '{device['name']}', expected '{key}'")
        if device["slowdown"] < 1:
            fail(f"{where}.slowdown", f"is {device['slowdown']}; a device can be made slower (1 or more), not faster")
        for part in ("cores", "memory_mib"):
            if device[part] <= 0:
                fail(f"{where}.{part}", f"is {device[part]}, expected more than 0")
        if not 0 <= device["reserve_mib"] < device["memory_mib"]:
            fail(f"{where}.reserve_mib", f"is {device['reserve_mib']}, expected 0 to below memory_mib ({device['memory_mib']})")
    names = [member["name"] for member in cluster["members"]]
    for member in cluster["members"]:
        where = f"cluster.members[{member['name']}]"
        if names.count(member["name"]) > 1:
            fail(where, "two members have this name")
        if member["device"] not in cluster["types"]:
            fail(f"{where}.device", f"unknown device '{member['device']}'; cluster.types has: {', '.join(cluster['types'])}")
        device = cluster["types"][member["device"]]
        if min(member["cores"], default=0) < 0:
            fail(f"{where}.cores", f"lists {member['cores']}; cores are numbered from 0")
        if cluster["launch"] in NODE_LAUNCHES:
            _check_node(cluster, member, where, fail)
        elif device["kind"] == "cpu" and len(set(member["cores"])) != device["cores"]:
            fail(f"{where}.cores", f"lists {member['cores']}, but the device '{device['name']}' has cores: {device['cores']}")
        if device["kind"] == "gpu" and (device["peak"] is None or not member["node"] or cluster["ethernet_gbit_s"] is None):
            fail(where, "a catalogue device needs its type's peak, a node, and the cluster's ethernet_gbit_s")
    devices = [{"cores": member["cores"], "slowdown": cluster["types"][member["device"]]["slowdown"]} for member in cluster["members"]]
    for core, quota in shared_core_quota(devices).items():
        fail(
            "cluster.members",
            f"those that share core {core} need {quota:.2f} of it together; at most {MAX_SHARED_QUOTA} keeps the emulation honest",
        )
