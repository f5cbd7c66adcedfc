# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that go wrong under the real command: exit code, what is said, that no process is left."""

from __future__ import annotations

import json
import re
import signal
import time

from tests.cli.commands import COMMAND, assert_gone, k2, running, running_command


def test_a_learning_rate_that_is_too_high_ends_with_a_diagnosis(place):
    """Exit code 1 and no traceback; the same text in the log of every rank."""
    done = k2(
        place, "train", "tiny.yaml", "--set=run.name=diverged", "--set=schedule.lr=1.0e+30",
        "--set=run.max_consecutive_skipped_steps=2", "--set=logging.valid_every_steps=null",
    )  # fmt: skip
    assert done.code == 1, done
    assert "Traceback" not in done.out + done.err
    assert "2 steps in a row were skipped, because loss or gradient were not finite" in done.err
    assert "gradients that are not finite: rank" in done.err and "what to do: " in done.err
    # Whichever ended first.
    assert re.search(r"^k2-megatron: rank [01] ended with exit code 1; the other", done.err, re.M)
    log = (place / "runs" / "diverged" / "logs" / "rank_00001.log").read_text()
    assert "2 steps in a row were skipped" in log and "Traceback" not in log
    status = k2(place, "status", "diverged", "--json")
    found = json.loads(status.out)
    assert (found["skipped_steps"], found["alive"]) == (2, False)
    assert found["ended"] == "ended: too many skipped steps"


def test_a_disk_that_is_full_is_told_by_status(place):
    """`status` said that the run had ended without a word, though the run had told why."""
    words = [*COMMAND, "train", "tiny.yaml", "--set=run.name=full", "--set=run.stop_after_step=2"]
    words += ["--set=parallel.pipeline_model_parallel_size=1", "--set=logging.tensorboard=false"]
    words += ["--set=logging.valid_every_steps=null", "--nproc=1"]
    # KiB that a file may have; that of the checkpoint has 320.
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *words]
    with running_command(place, limited) as run:
        done = run.done()
    assert done.code == 2 and "[Errno 27] File too large" in done.err, done
    status = k2(place, "status", "full")
    assert "none is training; ended: saving step 2 in " in status.out, status


def test_a_stopped_process_ends_the_job(place):
    """It cannot even say where it stands; the others do, and the launcher ends it."""
    command = ("train", "tiny.yaml", "--set=run.name=stopped", "--set=schedule.train_steps=100000")
    with running(place, *command, "--set=run.hang_timeout_seconds=15") as run:
        run.wait_for("step      3/100000")
        ranks = run.ranks()
        ranks[1].suspend()
        began = time.monotonic()
        done = run.done()
    assert done.code == 1, done
    assert time.monotonic() - began < 60
    assert "k2-megatron: no progress for 15 s (run.hang_timeout_seconds); the job ends" in done.err
    assert "  rank 1: no answer: gone, stopped, or without the interpreter\n" in done.err
    assert "  the others wait for rank 1\n" in done.err
    assert "(it waits for other ranks)" in done.err
    assert (place / "runs/stopped/logs/hang_in_start_1/rank_00000.txt").exists()
    assert "none is training; ended: no progress" in k2(place, "status", "stopped").out
    assert_gone(ranks)


def test_a_crash_of_c_code_leaves_the_stacks_in_the_log(place):
    """A shell says no more than "Segmentation fault"."""
    command = ("train", "tiny.yaml", "--set=run.name=crashed", "--set=schedule.train_steps=100000")
    with running(place, *command) as run:
        run.wait_for("step      3/100000")
        ranks = run.ranks()
        ranks[1].send_signal(signal.SIGSEGV)
        done = run.done()
    assert done.code == 1 and "k2-megatron: rank 1 was killed by SIGSEGV" in done.err, done
    log = (place / "runs" / "crashed" / "logs" / "rank_00001.log").read_text()
    assert "Fatal Python error: Segmentation fault" in log and "train/loop.py" in log, log
    assert_gone(ranks)
