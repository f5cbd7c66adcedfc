# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, without systemd."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from k2_megatron.launch.ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
INSTALL = "apt-get install munge slurmctld slurmd slurm-client"
NODES = ("n0", "n1")
START_SECONDS = 30.0
_END_SECONDS = 10.0

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
# Without cgroups, the root user or an idea of the cores there are.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=30
# Looks every second for jobs that can start, not every half minute.
SchedulerParameters=sched_interval=1,bf_interval=1
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A SLURM that runs, and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"

    def command(self, *words: str, check: bool = True) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or not check, (words, done)
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """For programs that are to find this SLURM and no other."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def state(self, job: str) -> str:
        """A word such as PENDING, RUNNING or COMPLETED; of a finished job for some minutes."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job)
        return next(word for word in shown.split() if word.startswith("JobState="))[9:]

    def wait_until_gone(self, job: str) -> None:
        """Wait until nothing of a job is left, on the nodes and among the processes.

        A node is idle a moment before the last start's slurmstepd has removed its copy of the
        script, and would remove that of the next start.
        """
        _wait_until(lambda: self._is_idle() and not _step_daemons(job), self.folder, "slurmctld")

    def wait_until_idle(self) -> None:
        """Wait until both nodes take jobs."""
        _wait_until(self._is_idle, self.folder, "slurmctld")

    def logs(self) -> str:
        """The end of what the daemons say."""
        files = [self.folder / f"{name}.log" for name in ("slurmctld", *NODES)]
        return "\n".join(f"{file}:\n{file.read_text()[-2000:]}" for file in files)

    def _is_idle(self) -> bool:
        shown = self.command("sinfo", "--noheader", "--Node", "--format=%T", check=False)
        return shown.split() == ["idle"] * len(NODES)

    def wait_for_state(self, job: str, *states: str, seconds: float) -> str:
        """Wait until the job is in one of the states; the state."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {states}"
            time.sleep(0.2)
        return state


def missing_programs() -> list[str]:
    """What a test of SLURM needs and is not installed."""
    return [name for name in PROGRAMS if _find(name) is None]


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start a SLURM of our own, on its own ports, as this user; at the end nothing of it is left.

    Args:
        folder: empty; its path must be short, because a socket lies in it.
    """
    slurm = Slurm(folder)
    _write_configuration(folder)
    environment = slurm.environment
    with ExitStack() as stack:
        munge = [f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key", "--force"]
        munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
        munge += [f"--seed-file={folder}/munged.seed", "--foreground"]
        stack.enter_context(_daemon(["munged", *munge], environment))
        _wait_until((folder / "munge.socket").exists, folder, "munged")
        stack.enter_context(_daemon(["slurmctld", "-D", "-c"], environment))
        for node in NODES:
            stack.enter_context(_daemon(["slurmd", "-D", "-N", node], environment))
        slurm.wait_until_idle()
        try:
            yield slurm
        finally:
            slurm.command("scancel", "--user", getpass.getuser(), check=False)
            _wait_until(lambda: not _jobs(slurm), folder, "slurmctld")


def _write_configuration(folder: Path) -> None:
    for name in ("state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2"
        for name in NODES
    ]
    text = _CONF.format(
        host=host,
        port=free_port(),
        folder=folder,
        user=getpass.getuser(),
        nodes="\n".join(nodes),
        names=",".join(NODES),
    )
    (folder / "slurm.conf").write_text(text)


@contextmanager
def _daemon(words: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """A program that stays in the foreground, ended with the block."""
    program = _find(words[0])
    assert program is not None
    process = subprocess.Popen(
        [program, *words[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _step_daemons(job: str) -> list[int]:
    """The slurmstepd of a job, which call themselves `slurmstepd: [JOB.STEP]`."""
    commands = [
        (process.pid, process.info["cmdline"]) for process in psutil.process_iter(["cmdline"])
    ]
    return [pid for pid, words in commands if words and f"slurmstepd: [{job}." in " ".join(words)]


def _jobs(slurm: Slurm) -> str:
    return slurm.command("squeue", "--noheader", check=False).strip()


def _wait_until(condition: Callable[[], object], folder: Path, daemon: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        log = folder / f"{daemon}.log"
        said = log.read_text()[-2000:] if log.exists() else "nothing"
        assert time.monotonic() < deadline, f"{daemon} is not ready and says {said}"
        time.sleep(0.1)


def _find(name: str) -> str | None:
    """A program; Debian's daemons are in folders that only root's PATH has."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
