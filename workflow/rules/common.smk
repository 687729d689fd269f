"""Compose the experiments once, before the DAG is built, and give each rule only the settings that it uses."""

import re
import sys

from llmpq.config_evaluate import TEXTS, evaluation_texts, used_texts
from llmpq.config_cache import as_list, load_experiments
from llmpq.config_simulated import is_simulated
from llmpq.config_suites import ASKED_FOR
from llmpq.errors import ConfigError, LlmpqError
from llmpq.plan.strategies import STRATEGIES
from llmpq.quant.options import quantised_options
from llmpq.report.verdict import focus_strategy
from llmpq.session import begin_session, end_session, one_line_errors, only_errors, take_over_lock
from llmpq.slurm.script import LAUNCHES
from llmpq.sources import code_digest
from llmpq.suites.members import facts_of
from llmpq.track_files import targets
from llmpq.validity.settings import read_studies

one_line_errors()
CONFIG, CACHE = Path(workflow.basedir) / "config", Path(workflow.basedir) / ".snakemake/llmpq"
if {"host", "progress", "reason", "rules"} <= set(map(str, workflow.output_settings.quiet or ())) and not workflow.dryrun:
    only_errors()
try:
    if workflow.is_main_process and not workflow.dryrun:
        take_over_lock()
    EXPERIMENTS = load_experiments(CONFIG, config, CACHE)
    STUDIES = read_studies(CONFIG / "validity.yaml")
except LlmpqError as error:
    sys.exit(f"llmpq: error: {error}")

# Experiments and clusters whose processes are one Slurm job of their own, which a rule on the submitting host starts and waits for.
ON_NODES = [name for name, each in EXPERIMENTS.items() if each["cluster"]["launch"] in LAUNCHES]
CLUSTERS_ON_NODES = sorted({EXPERIMENTS[name]["cluster"]["name"] for name in ON_NODES})
# Experiments on devices that are not here: simulated, not served.
SIMULATED = [name for name, each in EXPERIMENTS.items() if is_simulated(each)]
# Threads of a job without a device of its own (calibration) on a cluster; set-threads in slurm/config.v9+.yaml may say otherwise.
CLUSTER_THREADS = 4

OVERRIDES = as_list(config.get("overrides"), "overrides")

# Every suite is a target. Without --config experiments=…, `all` leaves out those that are only asked for by name.
SUITES = sorted({each["suite"] for each in EXPERIMENTS.values()})
CHOSEN = [name for name, each in EXPERIMENTS.items() if "experiments" in config or each["suite"] not in ASKED_FOR]
EXPERIMENT = "results/experiments/{experiment}"
RUN = f"{EXPERIMENT}/{{strategy}}"
ENVIRONMENT = "../envs/llmpq.yaml"


wildcard_constraints:
    experiment=r"[\w.-]+",
    strategy=r"[\w.-]+",
    model=r"[\w.-]+",
    device=r"[\w.-]+",
    cluster=r"[\w.-]+",
    profile=r"[\w.-]+",
    quantizer=r"[\w.-]+",
    indicator=r"[\w.-]+",
    evaluate=r"[\w.-]+",
    text=r"[\w.-]+",
    group=r"layers-\d{3}-\d{3}",


def pick(mapping, keys=""):
    """The named keys of a group, or the whole group without its name."""
    return {key: value for key, value in mapping.items() if (key in keys.split() if keys else key != "name")}


def experiment(wildcards):
    """The experiment that a path names; ConfigError where there is none, or no such strategy."""
    name, strategy = wildcards.experiment, wildcards.get("strategy")
    if name not in EXPERIMENTS:
        raise ConfigError(f"unknown experiment '{name}'; this run knows: {', '.join(EXPERIMENTS)}")
    if strategy is not None and strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{strategy}'; strategies are {', '.join(STRATEGIES)}")
    return EXPERIMENTS[name]


def entry(group, name):
    """One configuration entry by its name; equal in every experiment that uses it (checked by compose)."""
    for each in EXPERIMENTS.values():
        found = each["cluster"]["types"].get(name) if group == "device" else each[group] if each[group]["name"] == name else None
        if found is not None:
            return found
    if group not in ("device", "cluster") and (CONFIG / group / f"{name}.yaml").is_file():  # nobody uses it, but its path may be asked for
        # A quantizer alone is not timed: whatever it offers is taken as timed.
        beside = ["profile.options=${quantizer.options}"] if group == "quantizer" else []
        chosen = {"experiments": CHOSEN[:1], "overrides": [f"{group}={name}", *beside, *OVERRIDES]}
        return next(iter(load_experiments(CONFIG, chosen, CACHE).values()))[group]
    known = {key for each in EXPERIMENTS.values() for key in (each["cluster"]["types"] if group == "device" else [each[group]["name"]])}
    if group not in ("device", "cluster"):
        known |= {path.stem for path in (CONFIG / group).glob("*.yaml")}
    what = "no experiment uses the" if (CONFIG / group / f"{name}.yaml").is_file() else "unknown"
    raise ConfigError(f"{what} {group} '{name}'; known: {', '.join(sorted(known))}")


def known_text(name):
    """The name of a text that can be prepared."""
    if name not in TEXTS:
        raise ConfigError(f"unknown text '{name}'; known: {', '.join(TEXTS)}")
    return name


def text_source(name):
    """Where a text's original file lies, as an experiment that uses it says (they agree: checked by compose); empty for none."""
    known_text(name)
    return next((each["evaluate"]["sources"].get(name, "") for each in EXPERIMENTS.values() if name in used_texts(each)), "")


def of_entry(group, keys=""):
    """A params function: settings of the entry that the wildcard of that group names."""
    return lambda wildcards: pick(entry(group, wildcards[group]), keys)


def of_experiment(group, keys=""):
    """A params function: settings of one group of the experiment."""
    return lambda wildcards: pick(experiment(wildcards)[group], keys)


def not_of(names):
    """A wildcard constraint: a name in a path, but none of these."""
    return rf"(?!(?:{names_pattern(names)})/)[\w.-]+"


def suite_members(suite):
    """Names of the experiments of a suite; of ``all``, those that the rule of that name runs."""
    return CHOSEN if suite == "all" else [name for name, each in EXPERIMENTS.items() if each["suite"] == suite]


def suite_files(suite):
    """Everything that the experiments of a suite make."""
    return [path for name in suite_members(suite) for path in targets(EXPERIMENTS[name])]


def for_experiment(pattern):
    """An input function: the pattern with the names of the experiment's entries filled in."""

    def fill(wildcards):
        chosen = experiment(wildcards)
        names = {group: chosen[group]["name"] for group in ("model", "cluster", "profile", "quantizer", "indicator", "evaluate")}
        return pattern.format(**names, **wildcards)

    return fill


def if_served(of_served):
    """An input function: ``of_served``, for an experiment whose devices are here; else nothing."""
    return lambda wildcards: [] if is_simulated(experiment(wildcards)) else of_served(wildcards)


def if_simulated(*names):
    """An input function: files of an experiment on devices that are not here; else nothing."""
    return lambda wildcards: [f"{EXPERIMENT}/{name}".format(**wildcards) for name in names] if is_simulated(experiment(wildcards)) else []


def if_explained(wildcards):
    """An input function: explain.json where the planner is to explain its plan, else nothing."""
    return f"{EXPERIMENT}/explain.json".format(**wildcards) if experiment(wildcards)["planner"]["explain"] else []


def if_compared(pattern):
    """An input function: the pattern where the evaluation compares with 16 bit, else nothing."""
    return lambda wildcards: for_experiment(pattern)(wildcards) if experiment(wildcards)["evaluate"]["compare"] else []


def all_cores(wildcards):
    """Threads of a job that has its machine to itself; those of a device's or a cluster's member where Snakemake submits it to a cluster."""
    if workflow.local_exec and not workflow.remote_exec:
        return workflow.cores
    if "device" in wildcards.keys():
        return entry("device", wildcards.device)["cores"]
    if "experiment" in wildcards.keys():
        chosen = experiment(wildcards)["cluster"]
    elif "cluster" in wildcards.keys():
        chosen = entry("cluster", wildcards.cluster)
    else:
        return CLUSTER_THREADS
    return max((core + 1 for member in chosen["members"] for core in member["cores"]), default=1)


def slurm_of(wildcards):
    """What a job on one device asks Slurm for: the device's own settings, for the wildcard {device}."""
    return entry("device", wildcards.device)["slurm"]


def names_pattern(names):
    """A wildcard constraint: one of these names, or nothing at all."""
    return "|".join(map(re.escape, names)) or "(?!)"


def device_files(pattern):
    """An input function: one file for each device type that the experiment's cluster has members of, in alphabetical order."""

    def fill(wildcards):
        devices = sorted({member["device"] for member in experiment(wildcards)["cluster"]["members"]})
        return [for_experiment(pattern.replace("{device}", device))(wildcards) for device in devices]

    return fill


def profile_files(wildcards):
    """An input function: the profiles of the cluster's devices, through the backend that serves the experiment."""
    return device_files(f"{times_of(wildcards)}/profiles/{{profile}}/{{model}}/{{device}}.json")(wildcards)


def cost_files(wildcards):
    """An input function: what was fitted to these profiles."""
    return device_files(f"{times_of(wildcards)}/cost/{{profile}}/{{model}}/{{device}}.json")(wildcards)


def times_of(wildcards):
    """The folder of the times that were taken through the experiment's backend."""
    return "results/vllm" if experiment(wildcards)["backend"]["name"] == "vllm" else "results"


def compiled_by_vllm():
    """Whether vLLM compiles what it is profiled with: as in serving (all experiments agree: checked by compose)."""
    return next((each["backend"]["compile"] for each in EXPERIMENTS.values() if each["backend"]["name"] == "vllm"), True)


def layer_groups(model, quantizer):
    """Names of the layer groups that are quantised one job each."""
    layers, step = (
        entry("model", model)["layers"],
        entry("quantizer", quantizer)["layers_per_job"],
    )
    return [f"layers-{first:03}-{min(first + step, layers) - 1:03}" for first in range(0, layers, step)]


def of_known_group(pattern):
    """An input function: the pattern, for a group of layers that the quantizer's layers_per_job makes; ConfigError for any other."""

    def fill(wildcards):
        known = layer_groups(wildcards.model, wildcards.quantizer)
        if wildcards.group not in known:
            raise ConfigError(
                f"unknown group '{wildcards.group}' of {wildcards.model} with quantizer {wildcards.quantizer}; "
                f"its layers_per_job makes: {', '.join(known)}"
            )
        return pattern

    return fill


def quantised_layers(wildcards):
    """An input function: the folders of all layer groups, for a model and quantizer or for an experiment's."""
    model = wildcards.get("model") or experiment(wildcards)["model"]["name"]
    quantizer = wildcards.get("quantizer") or experiment(wildcards)["quantizer"]["name"]
    return [f"results/quantised/{model}/{quantizer}/{group}" for group in layer_groups(model, quantizer)]


def quantised_ends(wildcards):
    """An input function: the folder of embedding and head, for a model or an experiment's."""
    model = wildcards.get("model") or experiment(wildcards)["model"]["name"]
    return f"results/quantised/{model}/ends"


def quantised_weights(wildcards):
    """An input function: the folders of all layer groups and of the ends."""
    return [*quantised_layers(wildcards), quantised_ends(wildcards)]


def strategy_files(*names):
    """An input function: files of every strategy of the experiment."""
    return lambda wildcards: expand(
        f"{RUN}/{{name}}",
        experiment=wildcards.experiment,
        strategy=experiment(wildcards)["strategies"],
        name=names,
    )


def links_of(name):
    """What the times of a cluster's links depend on: its members' cores, where its devices come from, and the links' own delay."""
    cluster = without_slurm(entry("cluster", name))
    used = "name source cores" if cluster["launch"] in LAUNCHES else "source"
    types = {key: pick(device, used) for key, device in cluster["types"].items()}
    return {**pick(cluster, "name launch members link interface"), "types": types}


def without_slurm(cluster):
    """A cluster without what Slurm is asked for, which no result depends on; the network that processes on nodes use stays."""
    types = {name: {key: value for key, value in device.items() if key != "slurm"} for name, device in cluster["types"].items()}
    network = {"interface": cluster["slurm"]["interface"]} if cluster["launch"] in LAUNCHES else {}
    return {**{key: value for key, value in cluster.items() if key != "slurm"}, "types": types, **network}


def whole_cluster(wildcards, resources):
    """A params function: the cluster with what Slurm is asked for.

    Snakemake does not compare parameters that are functions of ``resources``: finished work stays, whatever it would be given now.
    """
    return experiment(wildcards)["cluster"] if "experiment" in wildcards.keys() else entry("cluster", wildcards.cluster)


def if_vllm(pattern):
    """An input function: the pattern where vLLM serves the experiment, else nothing."""
    return lambda wildcards: pattern if experiment(wildcards)["backend"]["name"] == "vllm" else []


def served_by(wildcards):
    """What decides how an experiment is served of its backend's settings; ``compile`` is vLLM's alone."""
    backend = experiment(wildcards)["backend"]
    return pick(backend, "name margins port compile" if backend["name"] == "vllm" else "name margins port")


def serving_code(wildcards):
    """Digest of the modules that serve an experiment."""
    if experiment(wildcards)["backend"]["name"] == "vllm":
        return code_digest("llmpq.serve.*", "llmpq.vllm_serve.*")
    return code_digest("llmpq.serve.*")


def study(wildcards):
    """The study that a path names; ConfigError where there is none."""
    if wildcards.study not in STUDIES:
        raise ConfigError(f"unknown study '{wildcards.study}'; config/validity.yaml has: {', '.join(STUDIES)}")
    return STUDIES[wildcards.study]


def study_files(pattern):
    """An input function: the pattern with the study's names filled in; one file for each of a plural name (indicators, texts)."""

    def fill(wildcards):
        chosen = study(wildcards)
        names = {"model": chosen["model"], "quantizer": chosen["quantizer"]}
        lists = {"text": chosen["texts"], "group": layer_groups(**names)}
        lists |= {"indicator": chosen["indicators"], "own": chosen["indicator"], "other": chosen["stability"]}
        return expand(pattern, **names, **lists)

    return fill
