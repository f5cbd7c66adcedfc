# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Jobs in a real SLURM of two nodes: preempted, killed, cancelled; nothing is lost, none hangs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.commands import assert_refused, k2
from tests.cli.test_training import metrics
from tests.slurm.controller import Slurm

PATIENCE_SECONDS = 90.0
JOB = (
    "--set=cluster.nodes=2",
    "--set=cluster.gpus_per_node=0",
    "--set=cluster.tasks_per_node=1",
    "--set=logging.valid_every_steps=null",
    "--set=checkpoint.save_every_steps=null",
)
# Long enough for a signal to come in the middle.
STEPS = "--set=schedule.train_steps=60"
LONG = "--set=schedule.train_steps=100000"


class Job:
    """A job that `launch` has submitted."""

    def __init__(self, slurm: Slurm, place: Path, name: str, *arguments: str) -> None:
        done = k2(
            place, "launch", "tiny.yaml", f"--set=run.name={name}", *JOB, *arguments,
            SLURM_CONF=str(slurm.conf),
        )  # fmt: skip
        assert done.code == 0 and done.err == "", done
        found = re.search(r"^job (\d+) is submitted: runs/(\S+)/slurm.sbatch$", done.out, re.M)
        assert found and found[2] == name, done
        self.slurm, self.id, self.run = slurm, found[1], place / "runs" / name
        assert done.out.endswith(f"its log: runs/{name}/logs/slurm_{self.id}.log\n")

    def log(self) -> str:
        """What all ranks, srun and the script have said."""
        path = self.run / "logs" / f"slurm_{self.id}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_text(self, text: str) -> None:
        """Wait until the log has it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.log():
            assert time.monotonic() < deadline, f"no {text!r} in time: {self.log()}"
            time.sleep(0.1)

    def wait_for_state(self, *states: str) -> str:
        """Wait until the job is in one of the states; the state."""
        return self.slurm.wait_for_state(self.id, *states, seconds=PATIENCE_SECONDS)

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        wanted = {"SLURM_JOB_ID": self.id, "SLURM_PROCID": str(number)}
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                ours = "k2_megatron" in process.cmdline()
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if ours and wanted.items() <= environment.items():
                return process
        raise AssertionError(f"rank {number} of job {self.id} is not there")


@pytest.fixture
def launch(slurm: Slurm, place: Path) -> Iterator[object]:
    """Submits a job; at the end of the test it is gone."""
    jobs: list[Job] = []

    def submit(name: str, *arguments: str) -> Job:
        jobs.append(Job(slurm, place, name, *arguments))
        return jobs[-1]

    yield submit
    for job in jobs:
        slurm.command("scancel", "--quiet", job.id, check=False)
        job.wait_for_state("CANCELLED", "COMPLETED", "FAILED")


def _without_times(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    """Metrics that a configuration decides: the optimizer's time is none."""
    for line in lines:
        extra = line.get("extra")
        if isinstance(extra, dict):
            for key in [key for key in extra if key.startswith(("muon/seconds", "straggler/"))]:
                del extra[key]
    return lines


def _saved(run: Path) -> dict[str, bytes]:
    """What the ranks have saved last, bit for bit: weights and the optimizer's state."""
    latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    # Python's random numbers, in other files, are seeded by the clock, and training draws none.
    saved = {path.name: path.read_bytes() for path in latest.glob("rank_*.bin")}
    assert len(saved) == 2 and all(saved.values())
    return saved


def test_a_preempted_job_goes_on_and_equals_an_undisturbed_run(launch, slurm, place):
    job = launch("preempted", STEPS)
    stops: list[int] = []
    # As --signal does before the time limit, and as preemption does before its grace time ends.
    for name in ("USR1", "TERM"):
        job.wait_for_text(f"0: step {max([0, *stops]) + 3:2}/60")
        slurm.command("scancel", f"--signal={name}", job.id)
        job.wait_for_state("PENDING")
        stopped = re.search(rf"0: stopped by SIG{name} after step (\d+);", job.log())
        assert stopped, job.log()
        stops.append(int(stopped[1]))
        told = "k2-megatron: stopped with a checkpoint saved; the job is requeued"
        assert job.log().count(told) == len(stops)
        # SLURM holds a requeued job for two minutes, in which the start before ends altogether.
        slurm.wait_until_gone(job.id)
        # Not in the same second: SLURM revokes credentials by whole seconds, the new start's too.
        slurm.command("scontrol", "update", f"JobId={job.id}", "StartTime=now+2seconds")
    state = job.wait_for_state("COMPLETED", "FAILED")
    assert state == "COMPLETED", f"{job.log()}\n{slurm.logs()}"
    log = job.log()
    for start, step in enumerate(stops, start=2):
        told = f"job {job.id}, start {start}: 2 nodes, 2 ranks, the first at 127.0.0.1"
        assert f"k2-megatron: {told}" in log
        assert re.search(rf"0: resumed after step {step}\b", log), log
    assert log.endswith("k2-megatron: the run is done\n")

    whole = k2(place, "train", "tiny.yaml", "--set=run.name=undisturbed", *JOB, STEPS)
    assert whole.code == 0, whole
    undisturbed = place / "runs" / "undisturbed"
    assert [line["step"] for line in metrics(job.run)] == list(range(1, 61))
    assert _without_times(metrics(job.run)) == _without_times(metrics(undisturbed))
    assert _saved(job.run) == _saved(undisturbed)


def test_a_killed_rank_ends_the_job_and_is_named(launch, place):
    job = launch("killed", LONG)
    job.wait_for_text("0: step      3/100000")
    began = time.monotonic()
    job.rank(1).kill()
    assert job.wait_for_state("FAILED", "COMPLETED", "PENDING") == "FAILED"
    assert time.monotonic() - began < 60
    assert re.search(
        r"^k2-megatron: failed with exit code \d+; the first that ended \(a task is a rank\): "
        r"srun: error: n1: task 1: Killed$",
        job.log(),
        re.M,
    ), job.log()
    assert "k2-megatron: not requeued; submit the job again" in job.log()
    told = "none is training; ended: srun: error: n1: task 1: Killed, SLURM job "
    assert told in k2(place, "status", "killed").out


def test_a_cancelled_job_leaves_a_whole_checkpoint(launch, slurm, place):
    job = launch("cancelled", LONG)
    job.wait_for_text("0: step      3/100000")
    slurm.command("scancel", job.id)
    job.wait_for_state("CANCELLED")
    job.wait_for_text("the job was ended, so it is not requeued here")
    stopped = re.search(r"0: stopped by SIGTERM after step (\d+);", job.log())
    assert stopped, job.log()
    latest = (job.run / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step_{int(stopped[1]):08}"
    inspected = k2(job.run, "checkpoint", "inspect", f"checkpoints/{latest}")
    assert inspected.code == 0 and "whole: every checksum is right" in inspected.out


def test_a_hand_stopped_job_gets_all_the_time_it_needs(launch, slurm):
    """SIGTERM to the script alone: it is passed on to the ranks, without SLURM's KillWait."""
    job = launch("by-hand", LONG)
    job.wait_for_text("0: step      3/100000")
    slurm.command("scancel", "--batch", "--signal=TERM", job.id)
    assert job.wait_for_state("FAILED", "COMPLETED", "PENDING") == "FAILED"
    assert "0: stopped by SIGTERM after step" in job.log()
    assert "the job was ended, so it is not requeued here" in job.log()


def test_slurm_reads_the_log_path_as_it_stands(slurm, place):
    """sbatch has quotes of its own."""
    folder = """it's $HOME "and" `x`"""
    job = k2(
        place, "launch", "tiny.yaml", "--dry-run", *JOB, f"--set=run.folder={json.dumps(folder)}",
        SLURM_CONF=str(slurm.conf),
    )  # fmt: skip
    assert job.code == 0, job
    (place / "quoted.sbatch").write_text(job.out)
    number = slurm.command("sbatch", "--hold", "--parsable", str(place / "quoted.sbatch")).strip()
    shown = slurm.command("scontrol", "show", "job", number)
    slurm.command("scancel", number)
    assert f"{folder}/tiny/logs/slurm_{number}.log\n" in shown


def test_slurm_refuses_a_job(slurm, place):
    done = k2(
        place, "launch", "tiny.yaml", *JOB, "--set=run.name=refused",
        "--set=cluster.partition=gpu", SLURM_CONF=str(slurm.conf),
    )  # fmt: skip
    assert_refused(done, "SLURM refuses runs/refused/slurm.sbatch: ", "invalid partition")
    assert (place / "runs" / "refused" / "slurm.sbatch").exists()
