"""A Slurm site on one machine: a controller and node daemons with fake GPUs of two types, each node with an address of its own.

Everything lives in namespaces of its own (mounts, network, host name, processes): /etc/slurm, /etc/munge and /etc/hosts are private
copies, nodes are network namespaces on a private bridge, and when the first process of the site ends, the kernel ends all others.
Nothing outside is changed. The shared file system is the machine's own. Needs root and Debian's slurmctld, slurmd, slurm-client, munge.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "setpriv", "ip", "mknod", "mount")
NETWORK = "10.77.0"
HEAD = "head"
START_S = 30.0
CONFIGURATION = """\
ClusterName=llmpq-test
SlurmctldHost={head}({network}.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=5
KillWait=5
InactiveLimit=0
MinJobAge=3600
# Without cgroups this is the one way in which Slurm ends a job that takes more memory than it asked for.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,bf_hetjob_immediate
OverTimeLimit=0
GresTypes=gpu
"""


@dataclass(frozen=True)
class Node:
    """A node: its name, partition, and how many fake GPUs of which type it has."""

    name: str
    partition: str
    gpu: str = ""
    gpus: int = 0
    cpus: int = 8
    memory_mb: int = 8000


NODES = (Node("cpu-0", "cpu"), Node("t4-0", "t4", "t4", 2), Node("t4-1", "t4", "t4", 1), Node("v100-0", "v100", "v100", 1))


def missing() -> str:
    """Why no site can be started on this machine, or nothing."""
    if os.geteuid() != 0:
        return "a Slurm site needs root"
    lacking = [name for name in PROGRAMS if _program(name) is None]
    if lacking:
        return f"a Slurm site needs {', '.join(lacking)}: run `make test-slurm` on Debian"
    probe = subprocess.run(["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "true"], check=False, capture_output=True)
    return "" if probe.returncode == 0 else "a Slurm site needs namespaces, which this machine does not allow"


class Site:
    """A running site; ``run`` and ``start`` enter its head node."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder, self._pid = folder, pid

    def command(self, arguments: Sequence[str], folder: Path | None = None) -> list[str]:
        """What runs ``arguments`` on the head node, in ``folder`` or the current one."""
        # The folder is entered inside: one from outside belongs to another mount, across which nothing can be renamed.
        inside = ["env", f"--chdir={folder or os.getcwd()}", *arguments]
        return ["nsenter", "--target", str(self._pid), "--mount", "--net", "--uts", "--pid", *inside]

    def run(self, *arguments: str, timeout: float = 60) -> str:
        """The output of a command on the head node; RuntimeError with its errors where it fails."""
        done = subprocess.run(self.command(arguments), capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: status {done.returncode}: {done.stderr}")
        return done.stdout

    def kill_node(self, name: str) -> None:
        """What a power cut does to a node: its daemon, the steps and all that they run end at once."""
        pid = int((self.folder / f"node-{name}.pid").read_text(encoding="utf-8"))
        inside = Path(f"/proc/{self._pid}/root/proc")
        home = os.readlink(inside / str(pid) / "ns" / "net")
        for each in inside.iterdir():
            with contextlib.suppress(OSError):
                if each.name.isdigit() and os.readlink(each / "ns" / "net") == home:
                    self.run("kill", "-KILL", each.name)

    def start_node(self, name: str) -> None:
        """Bring a node back that ``kill_node`` ended."""
        self.run(sys.executable, __file__, str(self.folder), name)


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Start a site whose state is in ``folder``, and end it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "site.log").open("wb")
    # A site ends with the process that started it, also when that is killed.
    unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen([*unshare, sys.executable, __file__, str(folder)], stdout=log, stderr=log, start_new_session=True)
    first = ""
    try:
        deadline = time.monotonic() + START_S
        while not (folder / "ready").is_file():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Slurm site did not start: {(folder / 'site.log').read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.1)
        first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()[0]
        yield Site(folder, int(first))
    finally:
        process.kill()  # and with it the first process inside (--kill-child), whose end ends all the others
        process.wait()
        deadline = time.monotonic() + START_S
        while first and Path(f"/proc/{first}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        log.close()


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _run(*arguments: str) -> None:
    subprocess.run([_program(arguments[0]) or arguments[0], *arguments[1:]], check=True)


def _main(folder: Path) -> None:
    """The first process of the site."""
    _private_files(folder)
    _run("hostname", HEAD)
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "nodes", "type", "bridge")
    _run("ip", "address", "add", f"{NETWORK}.1/24", "dev", "nodes")
    _run("ip", "link", "set", "nodes", "up")
    _run("munged", "--force")
    _run("slurmctld", "-c")
    for number, node in enumerate(NODES):
        _start_node(folder, node, number)
    deadline = time.monotonic() + START_S
    while any(state != "idle" for state in _states()):
        if time.monotonic() > deadline:
            sys.exit(f"nodes are {_states()}")
        time.sleep(0.2)
    (folder / "ready").touch()
    while True:  # the first process of a namespace inherits orphans
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.5)


def _states() -> list[str]:
    found = subprocess.run(["sinfo", "-N", "-h", "-o", "%N %t"], capture_output=True, text=True, check=False).stdout
    known = dict(line.split() for line in found.splitlines())
    return [known.get(node.name, "unknown") for node in NODES]


def _private_files(folder: Path) -> None:
    for place in ("/etc/slurm", "/etc/munge", "/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(place).mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", place)
    (folder / "state").mkdir(exist_ok=True)
    key = Path("/etc/munge/munge.key")
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    text = CONFIGURATION.format(head=HEAD, network=NETWORK, folder=folder)
    gpus = []
    for number, node in enumerate(NODES):
        devices = [folder / f"gpu-{node.name}-{index}" for index in range(node.gpus)]
        for device in devices:
            _run("mknod", str(device), "c", "1", "3")
            gpus.append(f"NodeName={node.name} Name=gpu Type={node.gpu} File={device}")
        gres = f" Gres=gpu:{node.gpu}:{node.gpus}" if node.gpus else ""
        text += f"NodeName={node.name} NodeAddr={_address(number)} CPUs={node.cpus} RealMemory={node.memory_mb}{gres} State=UNKNOWN\n"
    partitions: Mapping[str, list[str]] = {
        **{node.partition: [other.name for other in NODES if other.partition == node.partition] for node in NODES},
        "every": [node.name for node in NODES],
    }
    for name, members in partitions.items():
        default = " Default=YES" if name == "cpu" else ""
        text += f"PartitionName={name} Nodes={','.join(members)} MaxTime=60 DefMemPerCPU=500 State=UP{default}\n"
    Path("/etc/slurm/slurm.conf").write_text(text, encoding="utf-8")
    Path("/etc/slurm/gres.conf").write_text("\n".join(gpus) + "\n", encoding="utf-8")
    hosts = [("127.0.0.1", "localhost"), (f"{NETWORK}.1", HEAD), *((_address(index), node.name) for index, node in enumerate(NODES))]
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in hosts), encoding="utf-8")
    _run("mount", "--bind", str(folder / "hosts"), "/etc/hosts")


def _address(number: int) -> str:
    return f"{NETWORK}.{number + 10}"


def _start_node(folder: Path, node: Node, number: int) -> None:
    """A node: a network and a host name of its own, on the bridge, with a daemon."""
    script = "; ".join(
        [
            f"hostname {node.name}",
            f"echo $$ > {folder}/node-{node.name}.pid",
            "while ! ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done",
            "ip link set lo up",
            f"ip address add {_address(number)}/24 dev eth0",
            "ip link set eth0 up",
            f"exec {_program('slurmd')} -D -N {node.name}",
        ]
    )
    pid_file = folder / f"node-{node.name}.pid"
    pid_file.unlink(missing_ok=True)
    with (folder / f"node-{node.name}.out").open("ab") as out:
        subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", script], stdout=out, stderr=out, start_new_session=True)
    while not (pid_file.is_file() and pid_file.read_text(encoding="utf-8").strip()):
        time.sleep(0.02)
    pid = pid_file.read_text(encoding="utf-8").strip()
    _run("ip", "link", "add", f"node{number}", "type", "veth", "peer", "name", "eth0", "netns", pid)
    _run("ip", "link", "set", f"node{number}", "master", "nodes", "up")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _main(Path(sys.argv[1]))
    else:
        _start_node(Path(sys.argv[1]), *next((node, index) for index, node in enumerate(NODES) if node.name == sys.argv[2]))
