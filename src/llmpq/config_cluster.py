"""The groups ``device`` and ``cluster`` of the configuration."""

from dataclasses import dataclass, field

from llmpq.config_slurm import SlurmCluster, SlurmDevice


@dataclass
class Peak:
    """Data-sheet peaks of a catalogue device, without sparsity; ``link_gb_s`` of one direction inside a node."""

    architecture: str
    fp16_tflops: float
    int8_tops: float
    memory_gb_s: float
    link_gb_s: float


@dataclass
class Device:
    """A device type: what is measured once and may be used by several members of a cluster."""

    name: str
    kind: str
    source: str
    memory_mib: int
    reserve_mib: int = 0
    cores: int = 1
    slowdown: float = 1.0
    peak: Peak | None = None
    slurm: SlurmDevice = field(default_factory=SlurmDevice)


@dataclass
class Member:
    """One device of a cluster, the processor cores it is pinned to (launch local), and the node it is in (others).

    ``address`` is where its stage listens ('': where the stages meet); ``prefix`` the words before the stage's command that put it
    on its host.
    """

    name: str
    device: str
    cores: list[int] = field(default_factory=list)
    node: str = ""
    address: str = ""
    prefix: list[str] = field(default_factory=list)


@dataclass
class Link:
    delay_ms: float = 0.0


@dataclass
class Cluster:
    name: str
    members: list[Member]
    types: dict[str, Device]
    launch: str = "local"
    ethernet_gbit_s: float | None = None
    link: Link = field(default_factory=Link)
    slurm: SlurmCluster = field(default_factory=SlurmCluster)
