"""The configuration: every file composes, and every mistake gives one line that names the key."""

import dataclasses
import shutil
import typing
from pathlib import Path

import pytest
import yaml

from llmpq.config import Experiment, compose
from llmpq.config_cache import load_experiments
from llmpq.config_checks import CHOICES, TEXTS
from llmpq.config_cluster import Device, Member
from llmpq.config_suites import ASKED_FOR, OVERRIDDEN, experiment_files, experiment_names
from llmpq.errors import ConfigError
from llmpq.plan.strategies import STRATEGIES

CONFIG = Path(__file__).parents[2] / "config"


def message(overrides: list[str], names: tuple[str, ...] = ("duo",), config: Path = CONFIG) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(config, names, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def composed() -> dict[str, dict[str, typing.Any]]:
    """Every experiment, composed together once: it takes seconds."""
    return compose(CONFIG, experiment_names(CONFIG))


@pytest.mark.parametrize("name", experiment_names(CONFIG))
def test_every_experiment_composes_and_documents_itself(composed: dict[str, dict[str, typing.Any]], name: str) -> None:
    file = experiment_files(CONFIG)[name]
    lines = file.path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# snakemake ")
    assert lines[1].endswith(f"experiments={name}")
    experiment = composed[name]
    assert (experiment["name"], experiment["suite"]) == (name, file.suite)
    assert set(experiment["strategies"]) <= set(STRATEGIES)


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_entry_is_named_as_its_file(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == path.stem


@pytest.mark.parametrize(
    "path", [each for each in sorted(CONFIG.glob("*/*.yaml")) if each.parent.name not in ("experiment", "device")], ids=str
)
def test_every_entry_can_be_chosen_by_name(path: Path) -> None:
    group = path.parent.name
    experiment = "smoke" if path.stem == "tiny" else "quick-3-today" if path.stem.startswith("paper-") else "duo"
    # What a quantizer offers has to be timed.
    companions = ["profile=tiny"] if path.stem == "tiny" else ["profile.options=${quantizer.options}"] if group == "quantizer" else []
    companions += ["cluster=pair", "serve=continuous"] if path.stem == "vllm" else []
    assert compose(CONFIG, [experiment], [*companions, f"{group}={path.stem}"])[experiment][group]["name"] == path.stem


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["cluster=pair", "backend.plan_for=native"], ["backend.plan_for", "is 'native'", "set it to vllm"]),
        (["cluster=pair", "serve=barrier"], ["serve.schedule", "choose serve=continuous"]),
        (["cluster=duo"], ["cluster.types.cpu-slow.slowdown", "is 2.5", "cannot be slowed down"]),
        (["cluster=pair", "cluster.types.cpu-large.slowdown=3", "cluster.types.cpu-middle.slowdown=3"], ["cpu-large.slowdown", "is 3"]),
        (["cluster=pair", "backend.name=vlm"], ["backend.name", "native, vllm"]),
    ],
)
def test_what_vllm_cannot_be_given_is_refused(overrides: list[str], parts: list[str]) -> None:
    told = message(["serve=continuous", "backend=vllm", *overrides])
    for part in parts:
        assert part in told


def test_the_two_experiments_of_a_pair_differ_in_what_serves_them_alone() -> None:
    own, other = (compose(CONFIG, ["pair", "pair-vllm"])[name] for name in ("pair", "pair-vllm"))
    assert {key for key in own if own[key] != other[key]} == {"name", "backend"}
    assert (own["backend"]["name"], other["backend"]["name"]) == ("native", "vllm")
    assert own["backend"]["plan_for"] == other["backend"]["plan_for"] == "vllm"


def test_the_duo_cluster_has_two_unequal_devices_on_cores_of_their_own() -> None:
    cluster = compose(CONFIG, ["duo"])["duo"]["cluster"]
    first, second = (cluster["types"][member["device"]] for member in cluster["members"])
    assert first["slowdown"] != second["slowdown"]
    assert not set(cluster["members"][0]["cores"]) & set(cluster["members"][1]["cores"])


def test_an_override_reaches_its_key() -> None:
    overrides = ["workload.new_tokens=7", "cluster.types.cpu-slow.slowdown=3", "planner=highs"]
    experiment = compose(CONFIG, ["duo"], overrides)["duo"]
    assert experiment["workload"]["new_tokens"] == 7
    assert experiment["cluster"]["types"]["cpu-slow"]["slowdown"] == 3.0
    assert experiment["planner"]["solver"] == "highs"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("workload.new_token=3", ["duo", "workload.new_token", "known", "new_tokens"]),
        ("quantizer.outlier_columns=16", ["quantizer.outlier_columns", "known", "layers_per_job"]),
        ("colour=red", ["colour", "known", "strategies"]),
        ("workload.new_tokens=many", ["workload.new_tokens", "many", "Integer"]),
        ("workload.new_tokens=null", ["workload.new_tokens", "not Optional"]),
        ("workload.ignore_eos=7.5", ["workload.ignore_eos", "7.5"]),
        ("workload=huge", ["workload/huge", "batch"]),
        ("cluster.types.cpu-slow.memory_mib=lots", ["cluster.types.cpu-slow.memory_mib", "lots"]),
        ("+workload.extra=1", ["+workload.extra=1", "key=value"]),
        ("~workload", ["~workload"]),
        ("workload.new_tokens", ["key=value"]),
        ("workload.new_tokens='", ["workload.new_tokens"]),
        ("name=other", ["an experiment is chosen"]),
        ("strategies=[llmpq,best]", ["strategies", "best", "adabits"]),
        ("strategies=[]", ["strategies", "empty"]),
        ("strategies=[llmpq,llmpq]", ["strategies", "twice"]),
        ('quantizer.options=["16","5"]', ["quantizer.options", "5"]),
        ('model.end_options=["16","4"]', ["model.end_options", "'4'", "32, 16, 8, bf16, w8a8"]),
        ("model.end_options=[]", ["model.end_options", "empty"]),
        ('model.kv_options=["16","4"]', ["model.kv_options", "'4'", "16, 8"]),
        ("model.kv_options=[]", ["model.kv_options", "empty"]),
        ("model.end_options=[w8a8]", ["model.end_options", "none of which the embedding may have", "32, 16, 8"]),
        ("quantizer.method=auto-gptq", ["quantizer.options", "w8a8-outlier", "leave it out"]),
        ('quantizer.options=["16","8"]', ["quantizer.options", "lacks '4'"]),
        ('profile.options=["16"]', ["quantizer.options", "profile.options"]),
        ("workload.region=[0.2,0.4]", ["workload.region", "overlaps", "calibration"]),
        ("evaluate.region=[0.4,1.0]", ["evaluate.region", "overlaps", "workload.region"]),
        ("evaluate.tasks=[winogrande]", ["evaluate.tasks", "winogrande", "continuation, lambada_openai"]),
        ("evaluate.stride=513", ["evaluate.stride", "more than evaluate.window_tokens (512)"]),
        ("evaluate.windows=0", ["evaluate.windows", "more than 0"]),
        ("evaluate.sources.bible=/tmp/bible.txt", ["evaluate.sources.bible", "known", "wikitext2"]),
        ("workload.region=[0.5]", ["workload.region", "from < to"]),
        ("workload.text=novel", ["workload.text", "novel", "wikipedia"]),
        ("workload.prompt_tokens_min=500", ["workload.prompt_tokens_min", "more than workload.prompt_tokens"]),
        ("workload.slots=64", ["workload.slots", "more than workload.requests"]),
        ("workload.slots=5", ["workload.slots", "full batches", "serve=continuous"]),
        ("workload.new_tokens_min=33", ["workload.new_tokens_min", "more than workload.new_tokens (32)"]),
        ("workload.requests=0", ["workload.requests", "more than 0"]),
        ("planner.objective.theta_ms=5", ["planner.objective", "exactly one"]),
        ("planner.gap=-1", ["planner.gap"]),
        ("planner.solver=abacus", ["planner.solver", "abacus", "glpk"]),
        ("planner.micro_batches.decode=[0]", ["planner.micro_batches.decode"]),
        ("cluster.members=[]", ["cluster.members", "empty"]),
        ("cluster.members=[{name: a, device: cpu-fast, cores: [0, 1]}]", ["cluster.members[a].cores", "cores: 1"]),
        ("cluster.members=[{name: a, device: gpu, cores: [0]}]", ["cluster.members[a].device", "gpu", "cpu-fast"]),
        (
            "cluster.members=[{name: a, device: cpu-fast, cores: [0]}, {name: a, device: cpu-fast, cores: [1]}]",
            ["cluster.members[a]", "two members"],
        ),
        (
            "cluster.members=[{name: a, device: cpu-fast, cores: [0]}, {name: b, device: cpu-slow, cores: [0]}]",
            ["core 0", "1.40"],
        ),
        ("cluster.types.cpu-slow.slowdown=0.5", ["cluster.types.cpu-slow.slowdown", "not faster"]),
        ("cluster.types.cpu-slow.kind=abacus", ["cluster.types.cpu-slow.kind", "abacus"]),
        ("serve.schedule=random", ["serve.schedule", "random", "barrier"]),
    ],
)
def test_a_mistake_gives_one_line_that_names_it(override: str, parts: list[str]) -> None:
    found = message([override])
    for part in parts:
        assert part in found


def test_an_unknown_experiment_is_answered_with_the_known_ones() -> None:
    found = message([], names=("duet",))
    assert "duet" in found
    assert "duo" in found


@pytest.fixture
def editable(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONFIG, tmp_path / "config"))


def test_a_new_device_and_experiment_are_two_files_and_no_code(editable: Path) -> None:
    device = (editable / "device" / "cpu-slow.yaml").read_text(encoding="utf-8").replace("cpu-slow", "cpu-crawl").replace("2.5", "9")
    (editable / "device" / "cpu-crawl.yaml").write_text(device, encoding="utf-8")
    cluster = (editable / "cluster" / "duo.yaml").read_text(encoding="utf-8")
    cluster = cluster.replace("cpu-slow", "cpu-crawl").replace("name: duo", "name: crawl")
    (editable / "cluster" / "crawl.yaml").write_text(cluster, encoding="utf-8")
    experiment = "# @package _global_\n# snakemake --config experiments=crawl\ndefaults:\n  - override /cluster: crawl\nname: crawl\n"
    (editable / "experiment" / "crawl.yaml").write_text(experiment, encoding="utf-8")
    assert compose(editable, ["crawl"])["crawl"]["cluster"]["types"]["cpu-crawl"]["slowdown"] == 9


@pytest.mark.parametrize(
    ("change", "group"),
    [("quantizer:\n  damping: 0.5", "quantizer"), ("profile:\n  repeats: 9", "profile"), ("cluster:\n  link:\n    delay_ms: 3", "cluster")],
)
def test_two_meanings_of_one_name_are_refused(editable: Path, change: str, group: str) -> None:
    path = editable / "experiment" / "local" / "duo.yaml"
    changed = path.read_text(encoding="utf-8").replace("name: duo", "name: other") + change + "\n"
    (editable / "experiment" / "other.yaml").write_text(changed, encoding="utf-8")
    found = message([], names=("duo", "other"), config=editable)
    assert f"change the {group} " in found
    assert "another name" in found


def test_memory_may_differ_since_no_shared_result_depends_on_it(editable: Path) -> None:
    path = editable / "experiment" / "local" / "duo.yaml"
    changed = path.read_text(encoding="utf-8").replace("name: duo", "name: small")
    changed += "cluster:\n  types:\n    cpu-slow:\n      memory_mib: 99\n"
    (editable / "experiment" / "small.yaml").write_text(changed, encoding="utf-8")
    assert set(compose(editable, ["duo", "small"])) == {"duo", "small"}


def test_yaml_that_is_none_names_its_file(editable: Path) -> None:
    (editable / "workload" / "batch.yaml").write_text("name: [", encoding="utf-8")
    assert "batch.yaml" in message([], config=editable)


def test_the_name_must_be_the_files(editable: Path) -> None:
    path = editable / "experiment" / "local" / "duo.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("name: duo", "name: duet"), encoding="utf-8")
    assert "duet" in message([], config=editable)


def test_the_cache_is_used_until_a_file_changes(editable: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_experiments(editable, {"experiments": "duo"}, cache)
    (kept,) = cache.iterdir()
    kept.write_text(kept.read_text(encoding="utf-8").replace('"new_tokens": 32', '"new_tokens": 33'), encoding="utf-8")
    assert load_experiments(editable, {"experiments": "duo"}, cache)["duo"]["workload"]["new_tokens"] == 33
    with (editable / "workload" / "batch.yaml").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert load_experiments(editable, {"experiments": "duo"}, cache) == first


def test_experiments_and_overrides_come_as_text_or_lists(tmp_path: Path) -> None:
    both = load_experiments(CONFIG, {"experiments": "duo,solo", "overrides": '["workload.new_tokens=9","evaluate.windows=3"]'}, tmp_path)
    assert {name: each["workload"]["new_tokens"] for name, each in both.items()} == {"duo": 9, "solo": 9}
    one = load_experiments(CONFIG, {"experiments": ["duo"], "overrides": "workload.new_tokens=9"}, tmp_path)
    assert one == {"duo": {**both["duo"], "evaluate": one["duo"]["evaluate"]}}
    for wrong in ({"experiment": "duo"}, {"experiments": "duo", "overrides": "[1"}, {"experiments": [3]}):
        with pytest.raises(ConfigError):
            load_experiments(CONFIG, wrong, tmp_path)


def test_the_names_that_the_checks_know_are_those_of_the_stages() -> None:
    from llmpq.indicator.methods import METHODS
    from llmpq.text import TEXTS as PREPARED

    assert set(TEXTS) == set(PREPARED)
    assert set(CHOICES["indicator.method"]) == set(METHODS)


def explained(kind: type, section: str, where: str) -> None:
    """Every field of a dataclass, and of those inside it, stands in backticks in the section."""
    for name, annotation in typing.get_type_hints(kind).items():
        assert f"`{name}`" in section, f"{where}.{name}"
        for inner in (annotation, *typing.get_args(annotation)):
            if dataclasses.is_dataclass(inner) and inner not in (Member, Device):
                explained(typing.cast(type, inner), section, f"{where}.{name}")


def test_every_key_is_explained_in_its_section_of_the_readme() -> None:
    sections = {part.split("\n")[0]: part for part in (CONFIG / "README.md").read_text(encoding="utf-8").split("\n## ")[1:]}
    groups = {name: kind for name, kind in typing.get_type_hints(Experiment).items() if dataclasses.is_dataclass(kind)}
    assert set(sections) == {"Experiment", "device", "paper.yaml", *groups}
    for name, kind in {"device": Device, **groups}.items():
        explained(typing.cast(type, kind), sections[name], name)
    for name in set(typing.get_type_hints(Experiment)) - set(groups):
        assert f"`{name}`" in sections["Experiment"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("quantizer.options=['16','4','4-g48']", "quantizer.options"),
        ("quantizer.static_groups=perhaps", "quantizer.static_groups"),
        ("backend.port=99999", "backend.port': is 99999"),
        ("profile.link_bytes=[64]", "at least two sizes"),
        ("profile.micro_batches=[]", "profile.micro_batches': is empty"),
        ("planner.micro_batches.decode=[]", "planner.micro_batches.decode': is empty"),
        ("planner.micro_batches={prefill: [16], decode: [4, 8]}", "every prefill size [16] is larger"),
        ("model.source=path", "model.path': is empty"),
        ("model.wheel=''", "model.wheel': is empty"),
        ("evaluate.window_tokens=1", "evaluate.window_tokens': is 1"),
        ("cluster.types.cpu-fast.reserve_mib=9999", "cluster.types.cpu-fast.reserve_mib"),
        ("cluster.types.cpu-fast.reserve_mib=-5", "cluster.types.cpu-fast.reserve_mib"),
        ("cluster.members=[{name: fast0, device: cpu-fast, cores: [-1]}]", "cores are numbered from 0"),
        ("cluster.name=a/b", "cluster.name"),
        ("quantizer.name=..", "quantizer.name"),
        ("quantizer.name='a b'", "quantizer.name"),
        ("tracking.uri='http://me:secret@host/'", "holds a password"),
    ],
)
def test_a_value_that_can_never_work_is_refused_before_anything_runs(change: str, words: str) -> None:
    told = message([change])
    assert words in told
    assert "secret" not in told


def test_a_device_that_two_experiments_change_needs_a_file_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "config"
    shutil.copytree(CONFIG, config)
    with (config / "experiment" / "local" / "trio.yaml").open("a", encoding="utf-8") as file:
        file.write("\ncluster: {types: {cpu-slow: {slowdown: 3}}}\n")
    told = message([], ("duo", "trio"), config)
    assert "a file of its own in config/device" in told


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    assert load_experiments(CONFIG, {"experiments": "duo"}, tmp_path / "file" / "cache")["duo"]["name"] == "duo"


def test_overrides_without_experiments_apply_to_what_is_served_here(tmp_path: Path) -> None:
    found = load_experiments(CONFIG, {"overrides": ["workload.new_tokens=7"]}, tmp_path)
    files = experiment_files(CONFIG)
    assert set(found) == {name for name, file in files.items() if file.suite in OVERRIDDEN} >= {"solo", "duo", "trio"}
    assert {file.suite for name, file in files.items() if name not in found} == {*ASKED_FOR, "ablations", "paper"}
    assert {each["workload"]["new_tokens"] for each in found.values()} == {7}


NODES = "cluster.members=[{name: a, device: cpu-fast, node: n0}, {name: b, device: cpu-slow, node: n1}]"


def test_a_cluster_on_nodes_leaves_cores_to_slurm() -> None:
    assert "cluster.members[fast0].cores" in message(["cluster.launch=hetjob"])
    assert compose(CONFIG, ["duo"], ["cluster.launch=hetjob", NODES])["duo"]["cluster"]["launch"] == "hetjob"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["cluster.launch=nodelist", NODES.replace("node: n1", "node: ''")], ["cluster.members[b].node", "the node's name in Slurm"]),
        (["cluster.launch=hetjob", NODES.replace("n1", "n0")], ["cluster.members[a].node", "cpu-fast, cpu-slow"]),
        (["cluster.launch=hetjob", NODES, "cluster.types.cpu-slow.slurm.mem_mb=0"], ["cluster.types.cpu-slow.slurm.mem_mb", "more than 0"]),
        (["cluster.launch=hetjob", NODES, "cluster.types.cpu-slow.slurm.gres='gpu t4'"], ["slurm.gres", "gpu t4", "no spaces"]),
        (["cluster.launch=hetjob", NODES, "cluster.types.cpu-fast.source=catalogue"], ["cluster.members[a].device", "launch none"]),
        (["cluster.launch=ssh"], ["cluster.launch", "local, hetjob, nodelist, none"]),
    ],
)
def test_what_slurm_cannot_be_asked_for_is_named(overrides: list[str], parts: list[str]) -> None:
    said = message(overrides)
    assert [part for part in parts if part not in said] == [], said
