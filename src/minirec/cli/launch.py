"""Run one command line as several processes: by `accelerate launch` on every node, and `srun` for several nodes.

The workflow's profile says how many. The number type is that of `policy.dtype`, whatever accelerate is set to.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from minirec.errors import InputError

FIRST_PORT, PORTS = 20_000, 10_000  # range of the ports on which the nodes of a job meet; other jobs take others


def command(arguments: Sequence[str], processes: int, nodes: int, environment: Mapping[str, str]) -> list[str] | None:
    """The command that runs `minirec ARGUMENTS` as `processes` on each of `nodes`; None if this process is one of them.

    Raises InputError if several nodes are requested outside a Slurm job, or without Slurm's tools.
    """
    if min(processes, nodes) < 1:
        raise InputError(f"--processes is {processes} and --nodes {nodes}; both are 1 or more")
    if processes * nodes == 1 or "RANK" in environment:
        return None
    if nodes == 1:
        return [*_accelerate(processes, 1, environment), "--main_process_port", "0", *_module(arguments)]
    if "SLURM_JOB_ID" not in environment:
        raise InputError(
            f"--nodes is {nodes}, but this is no Slurm job; lower nodes of train in the workflow's profile to 1, "
            "or submit it to Slurm"
        )
    for tool in ("srun", "scontrol"):
        if shutil.which(tool) is None:
            raise InputError(
                f"--nodes is {nodes}, but {tool} is not on the PATH of this job; load Slurm's module there"
            )
    if [environment.get(f"SLURM_STEP_NUM_{what}") for what in ("NODES", "TASKS")] != [str(nodes)] * 2:
        step = ["--overlap", "--kill-on-bad-exit=1", "--cpu-bind=none", f"--nodes={nodes}", f"--ntasks={nodes}"]
        return ["srun", *step, "--ntasks-per-node=1", sys.executable, "-m", "minirec", *arguments]
    rank, first = environment["SLURM_PROCID"], _first_host(environment["SLURM_STEP_NODELIST"])
    port = FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS
    meeting = ["--machine_rank", rank, "--main_process_ip", first, "--main_process_port", str(port)]
    return [*_accelerate(processes, nodes, environment), *meeting, *_module(arguments)]


def _accelerate(processes: int, nodes: int, environment: Mapping[str, str]) -> list[str]:
    """`accelerate launch` with all options that it would otherwise read from the user's configuration."""
    number = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # one number for each level of nesting
    threads = max(1, (int(number) if number.isdigit() else processes) // processes)
    options = {
        "num_processes": processes * nodes,
        "num_machines": nodes,
        "num_cpu_threads_per_process": threads,
        "gpu_ids": "all",
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *words]  # without a GPU: gloo


def _module(arguments: Sequence[str]) -> list[str]:
    return ["--module", "minirec", *arguments]


def _first_host(nodes: str) -> str:
    """Name of the first node in a list as Slurm writes it, e.g. `gpu[03-04],gpu07`."""
    done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise InputError(
            f"scontrol cannot say which nodes {nodes} are ({done.stderr.strip()}); repair Slurm's settings"
        )
    return done.stdout.split()[0]
