"""How one command line becomes several processes: `accelerate launch` on every node, `srun` where there are several.

Only the workflow's profile says how many. The precision is the model's, `policy.dtype`, and never accelerate's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from minirec.errors import InputError

FIRST_PORT, PORTS = 20_000, 10_000  # where the nodes of a job meet; jobs that share a node must not


def command(arguments: Sequence[str], processes: int, nodes: int, environment: Mapping[str, str]) -> list[str] | None:
    """What to run instead of `minirec ARGUMENTS` to have `processes` of it on each of `nodes`; None: it is one of them.

    Raises InputError where several nodes are wanted but Slurm, which starts them, gives none.
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
    """`accelerate launch`, with every answer given that it would look for in a person's own configuration."""
    given = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # one number for each level of nesting
    threads = max(1, (int(given) if given.isdigit() else processes) // processes)
    said = {
        "num_processes": processes * nodes,
        "num_machines": nodes,
        "num_cpu_threads_per_process": threads,
        "gpu_ids": "all",
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    words = [word for name, value in said.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *words]  # without a GPU: gloo


def _module(arguments: Sequence[str]) -> list[str]:
    return ["--module", "minirec", *arguments]


def _first_host(nodes: str) -> str:
    """The first of the nodes that Slurm lists as `gpu[03-04],gpu07`."""
    done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise InputError(
            f"scontrol cannot say which nodes {nodes} are ({done.stderr.strip()}); repair Slurm's settings"
        )
    return done.stdout.split()[0]
