"""The group ``slurm`` of devices and clusters: what jobs on a Slurm cluster ask for."""

from dataclasses import dataclass, field


@dataclass
class SlurmDevice:
    """What a Slurm job asks for to get one device of this type, in Slurm's words; an empty text asks for nothing."""

    partition: str = ""
    gres: str = ""
    constraint: str = ""
    mem_mb: int = 4000
    runtime_min: int = 60


@dataclass
class SlurmCluster:
    """What a job over the cluster's nodes asks for as a whole; ``options`` are further ones of sbatch, ``interface`` names a network."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    interface: str = ""
    options: list[str] = field(default_factory=list)
