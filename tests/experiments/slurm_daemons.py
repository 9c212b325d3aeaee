"""A Slurm of one node with its own munge, in a folder of its own: `with cluster(folder, cpus=2) as environment: ...`.

Nothing of a Slurm that the machine may already run is read or touched; all daemons end with the block.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol", "squeue", "scancel", "slurmctld", "slurmd", "munged", "setpriv")
SBIN = os.pathsep.join(["/usr/sbin", "/sbin"])
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs
ReturnToService=0
MaxArraySize=100
KillWait=20
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=search_path())]
    if absent:
        return f"no Slurm here ({', '.join(absent)} not found): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root here"


def search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), SBIN])


@contextlib.contextmanager
def cluster(folder: Path, *, cpus: int) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd; yield the environment in which commands reach them; stop them."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    ports = dict(zip(("controller", "node"), free_ports(2), strict=True))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, cpus=cpus, **ports))
    environment = clean_environment() | {"SLURM_CONF": str(folder / "slurm.conf")}
    with contextlib.ExitStack() as stack:
        for command in daemons(folder):
            stack.enter_context(daemon(command, environment))
            wait_for((folder / "munge.socket").exists, 30, "munge")
        wait_for(lambda: is_idle(environment), 60, "an idle node")
        yield environment
        output(["scancel", "--user=root"], environment)


@contextlib.contextmanager
def daemon(command: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Run a program in the background; it ends with the block, and with us if we are killed."""
    tied = ["setpriv", "--pdeathsig=TERM", *command]
    with subprocess.Popen(tied, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def is_idle(environment: Mapping[str, str]) -> bool:
    found = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, timeout=60)
    return found.stdout.strip() == "idle"


def daemons(folder: Path) -> list[list[str]]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    named = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
    return [["munged", "--foreground", "--force", *named], ["slurmctld", "-D"], ["slurmd", "-D"]]


def clean_environment() -> dict[str, str]:
    """Ours, without what a Slurm around us has set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
    return kept | {"PATH": search_path()}


def output(command: list[str], environment: Mapping[str, str], seconds: float = 60) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
