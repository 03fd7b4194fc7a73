"""A real Slurm on this machine, for the tests: `python tests/workflow/cluster.py` keeps one up until Ctrl-C.

Everything listens on 127.0.0.1. CPUs, memory, GPUs and a second node are pretended, so that the workflow's own requests
fit on any machine; memory is still watched, job by job. The partition `pair` has both nodes, the others only the first.
Nothing survives: the daemons end with the process that started them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
DAEMONS = ("munged", "slurmctld", "slurmd")
CPUS, MEMORY_MB, GPUS = 64, 256_000, 4
SECOND = "localhost"  # this machine under another name, which Slurm takes for another node
ETC = Path("/etc/slurm")  # where the Slurm of a distribution looks; jobs do not inherit SLURM_CONF
MARK = "# written by minirec's tests/workflow/cluster.py, which deletes it again"


class Unavailable(Exception):
    """Why this machine cannot have a Slurm of ours, in one sentence."""


def slurm_conf(home: Path, host: str) -> str:
    """The configuration of a cluster of two nodes, its state below `home`."""
    return f"""{MARK}
ClusterName=minirec
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
SlurmUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MinJobAge=3600
KillWait=5
NodeName={host} Port=16818 NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPUS}
NodeName={SECOND} Port=16819 NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPUS}
PartitionName=cpu Nodes={host} Default=YES
PartitionName=gpu Nodes={host}
PartitionName=pair Nodes={host},{SECOND}
"""


def gres_conf(home: Path, host: str) -> str:
    """The pretended GPUs: empty files instead of devices."""
    return f"{MARK}\nNodeName={host},{SECOND} AutoDetect=off Name=gpu File={home}/gpu[0-{GPUS - 1}]\n"


@contextmanager
def running() -> Iterator[Path]:
    """Start the cluster; yields the folder of its logs; raises Unavailable where this machine cannot have one."""
    refuse_foreign_slurm()
    install()
    host = socket.gethostname().split(".")[0]
    try:
        socket.gethostbyname(host)
    except OSError as error:
        raise Unavailable(f"Slurm needs the host name {host} to resolve; add it to /etc/hosts") from error
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minirec-slurm-")))
        home.chmod(0o755)  # munged insists
        (home / "state").mkdir()
        for number in range(GPUS):
            (home / f"gpu{number}").touch()
        (home / "munge.key").write_bytes(secrets.token_bytes(128))
        (home / "munge.key").chmod(0o600)
        for name, text in (("slurm.conf", slurm_conf(home, host)), ("gres.conf", gres_conf(home, host))):
            ETC.mkdir(exist_ok=True)
            stack.callback((ETC / name).unlink)
            (ETC / name).write_text(text, encoding="utf-8")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={home}/munge.{suffix}" for option, suffix in files.items()]
        start(stack, home, "munged", "--foreground", "--force", *munge)
        await_that(lambda: (home / "munge.socket").exists(), "munged opens its socket", home)
        start(stack, home, "slurmctld", "-D")
        await_that(lambda: "is UP" in said("scontrol", "ping"), "slurmctld answers", home)
        for node in (host, SECOND):
            start(stack, home, "slurmd", "-D", "-N", node)
        stack.callback(cancel_all)
        states = ("sinfo", "-h", "-p", "pair", "-o", "%D %T")
        await_that(lambda: said(*states).strip() == "2 idle", "both nodes are idle", home)
        yield home


def refuse_foreign_slurm() -> None:
    """Raise Unavailable unless this is root on a machine without a Slurm of its own."""
    if os.geteuid() != 0:
        raise Unavailable("starting a Slurm needs root; run make test-slurm as root, e.g. in a container")
    found = sorted(set(process_names()) & {"slurmctld", "slurmd", "slurmdbd"})
    if found:
        raise Unavailable(f"this machine runs a Slurm already ({', '.join(found)}); these tests start one of their own")
    for file in (ETC / "slurm.conf", ETC / "gres.conf"):
        if file.exists() and not file.read_text(encoding="utf-8").startswith(MARK):
            raise Unavailable(f"this machine has a Slurm of its own ({file}); these tests would overwrite its settings")


def process_names() -> Iterator[str]:
    """The programs that run here."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield os.path.basename(file.read_bytes().split(b"\0")[0].decode(errors="replace"))
        except OSError:  # it has ended
            continue


def install() -> None:
    """Install the packages of Slurm where they are missing; raises Unavailable where that fails."""
    if all(map(shutil.which, DAEMONS)):
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"{' and '.join(PACKAGES)} are missing and can be installed with apt-get only")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, text=True, capture_output=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise Unavailable(f"apt-get {command[0]} failed while installing Slurm: {' '.join(last)}")


def start(stack: ExitStack, home: Path, daemon: str, *arguments: str) -> None:
    """Start a daemon that ends with the stack, or at the latest with this process."""
    with (home / f"{daemon}.out").open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", daemon, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def said(*command: str) -> str:
    """What a command of Slurm prints; nothing where it fails."""
    return subprocess.run(command, text=True, capture_output=True, check=False).stdout


def await_that(holds: Callable[[], bool], what: str, home: Path, seconds: float = 60) -> None:
    """Wait until something holds; raises RuntimeError with the daemons' last words."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in home.glob("*.out"))
            raise RuntimeError(f"waited {seconds:g} s in vain until {what}\n{logs}")
        time.sleep(0.2)


def cancel_all(seconds: float = 60) -> None:
    """Cancel every job of the cluster and wait until their processes are gone."""
    said("scancel", "--user=root", "--full")
    deadline = time.monotonic() + seconds
    while said("squeue", "-h").strip() and time.monotonic() < deadline:
        time.sleep(0.2)


if __name__ == "__main__":
    try:
        with running() as folder:
            sys.stdout.write(f"{said('sinfo')}logs: {folder}; Ctrl-C ends it\n")
            sys.stdout.flush()
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            signal.pause()
    except Unavailable as reason:
        sys.exit(f"{reason}")
    except KeyboardInterrupt:
        pass
