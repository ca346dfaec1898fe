"""A real Slurm cluster for tests, on the loopback address. Needs root and the packages slurm-wlm and munge."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

# A requeued job waits for `cred_expire`, whose minimum is 5 seconds. JAX derives its port from the job's number, so
# clusters that run at the same time need different numbers.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=node1(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=86400
FirstJobId={port}
PartitionName=main Nodes=ALL Default=YES
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=65536\n"

# The shell is the first process of a namespace: when it ends, everything in the namespace is killed. It ends when `cat`
# reaches the end of its input, and until then reaps the daemons' orphans.
DAEMONS = """\
set -e
mount --bind {folder}/hosts /etc/hosts
hostname node1
mungekey --create --keyfile={folder}/munge.key
munged --force --key-file={folder}/munge.key --socket={folder}/munge.socket --pid-file={folder}/munged.pid \
    --seed-file={folder}/munged.seed --log-file={folder}/munged.log
slurmctld
for node in {names}; do unshare --uts sh -c "hostname $node; slurmd"; done
cat; exit
"""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running cluster: its folder and the environment that Slurm's commands need."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str | Path) -> str:
        """Run a command; return its output without the final newline."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command} exited {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.rstrip("\n")

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm reports about a job, or a task of an array ("7_2"): JobState, Restarts, ExitCode..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, state: str = "COMPLETED", seconds: float = 60.0) -> dict[str, str]:
        """Wait until a job is in a state; return what Slurm reports about it then."""
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] != state:
            if job["JobState"] in ENDED or time.monotonic() > end:
                raise RuntimeError(f"job {number} did not become {state}: {job}\n{_logs(self.folder)}")
            time.sleep(0.1)
        return job


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 1, cpus: int = 4) -> Iterator[Cluster]:
    """Run a cluster until the block ends or this process dies; jobs still running then are killed.

    Args:
        folder: an empty folder for its files and sockets, with a path of at most 80 characters.
        nodes: number of nodes, named node1, node2 and so on.
        cpus: CPUs of each node, whatever the machine has.
    """
    names = [f"node{number + 1}" for number in range(nodes)]
    port, *ports = _free_ports(1 + nodes)
    lines = [NODE.format(name=name, port=own, cpus=cpus) for name, own in zip(names, ports, strict=True)]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port) + "".join(lines))
    (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(names)}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    running = Cluster(folder, {**env, "SLURM_CONF": str(configuration)})
    script = DAEMONS.format(folder=folder, names=" ".join(names))
    command = ["unshare", "--pid", "--mount-proc", "--uts", "--fork", "--kill-child", "sh", "-c", script]
    with (
        (folder / "start.log").open("w") as log,
        subprocess.Popen(command, env=running.env, stdin=subprocess.PIPE, stdout=log, stderr=log) as process,
    ):
        _wait_until_idle(running, process)
        yield running


def _wait_until_idle(running: Cluster, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(RuntimeError):  # the controller does not answer yet
            if set(running.run("sinfo", "--noheader", "--Node", "--format=%T").split()) == {"idle"}:
                return
        time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"the nodes of the cluster do not become idle:\n{_logs(running.folder)}")


def _logs(folder: Path, count: int = 20) -> str:
    tails = [(path.name, path.read_text().splitlines()[-count:]) for path in sorted(folder.glob("*.log"))]
    return "\n".join(line for name, tail in tails for line in (f"--- {name}", *tail))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
