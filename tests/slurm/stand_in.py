# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a rendered script where no SLURM is: `srun` starts its ranks on this machine, over gloo.

Of SLURM there is only what the script asks of it, so that what is tested is the script with the
command it runs. `test_slurm_jobs.py` has a real one.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.cli.commands import k2

RANKS = """\
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE)) \\
        SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
done
code=0
for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
"""
_SRUN = "#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\n"
_SCONTROL = """\
#!/usr/bin/env bash
case "$*" in
    "show hostnames "*) printf 'n%s\\n' $(seq 0 $((SLURM_NNODES - 1))) ;;
    *"show node "*) echo "NodeName=$4 NodeAddr=127.0.0.1 Port=1" ;;
    "requeue "*) echo "$2" >>"$REQUEUED" ;;
esac
"""
_JOB_SECONDS = 240


@dataclass(frozen=True)
class Job:
    """One start of a job that has ended.

    Attributes:
        code: of the script.
        log: what ranks and script have said.
        requeued: the script has asked SLURM to queue the job again.
    """

    code: int
    log: str
    requeued: bool


def run_job(
    place: Path, config: str, *overrides: str, nodes: int, tasks: int = 2, srun: str = RANKS
) -> Job:
    """Render the job of a configuration on CPUs, and run its script once.

    Args:
        place: the working directory, with the configuration.
        config: its name.
        overrides: `section.key=value` each; `run.name` is among them.
        nodes: of the job.
        tasks: of each node.
        srun: what stands for it, in bash.
    """
    job = (f"cluster.nodes={nodes}", f"cluster.tasks_per_node={tasks}", "cluster.gpus_per_node=0")
    sets = [f"--set={override}" for override in (*overrides, *job)]
    rendered = k2(place, "launch", config, "--dry-run", *sets)
    assert (rendered.code, rendered.err) == (0, ""), rendered
    (name,) = (given.partition("=")[2] for given in overrides if given.startswith("run.name="))
    number = _job_number()
    log = place / "runs" / name / "logs" / f"slurm_{number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    programs, requeued = place / f"bin_{number}", place / f"requeued_{number}"
    programs.mkdir()
    for program, text in (("srun", _SRUN + srun), ("scontrol", _SCONTROL)):
        (programs / program).write_text(text)
        (programs / program).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "REQUEUED": str(requeued),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": f"n[0-{nodes - 1}]",
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
    }
    with log.open("wb") as output:
        done = subprocess.run(
            ["bash", "-c", rendered.out],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=_JOB_SECONDS,
        )
    return Job(code=done.returncode, log=log.read_text(), requeued=requeued.exists())


_NUMBERS = itertools.count(os.getpid() % 10000 + 1)


def _job_number() -> int:
    """A new number whose port, which the script makes of it, is free."""
    for number in _NUMBERS:
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", 20000 + number % 10000))
            except OSError:
                continue
            return number
    raise AssertionError("no port is free")
