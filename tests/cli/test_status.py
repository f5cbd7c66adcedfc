# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`k2-megatron status`: of a run that trains, that was stopped, that is done, that is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import assert_refused, k2, running

LONG = ("--set=schedule.train_steps=100000", "--set=logging.valid_every_steps=null")
TWO_GPUS = ("--set=cluster.nodes=1", "--set=cluster.gpus_per_node=2")
COMMAND = ("train", "tiny.yaml", "--set=run.name=looked-at", "--set=checkpoint.save_every_steps=3")


def test_a_run_that_trains_and_is_stopped(place, tmp_path):
    folder = str(place / "runs" / "looked-at")
    with running(place, *COMMAND, *LONG) as run:
        run.wait_for("step      8/100000")
        # From elsewhere: a command's output has a file in its working directory.
        text = k2(tmp_path, "status", folder)
        found = json.loads(k2(tmp_path, "status", folder, "--json").out)
        run.process.send_signal(signal.SIGTERM)
        assert run.done().code == 3
    assert text.code == 0 and text.err == "", text
    lines = dict(line.split(maxsplit=1) for line in text.out.splitlines())
    assert list(lines) == ["run", "process", "progress", "loss", "speed", "checkpoint", "faults"]
    assert lines["process"].startswith("training: process ") and ", 2 ranks" in lines["process"]
    assert " of 100000, " in lines["progress"] and lines["progress"].endswith(" ago")
    assert "tokens/s" in lines["speed"] and lines["speed"].endswith("left in steps alone")
    assert lines["faults"] == "0 restarts, 0 skipped steps, 0 rollbacks, 0 failed saves"
    assert found["alive"] is True and found["step"] >= 8 and found["last_step"] == 100000
    assert found["consumed_tokens"] == found["step"] * 128
    assert found["checkpoint_step"] % 3 == 0 and found["checkpoint_step"] >= 3
    assert 0 <= found["checkpoint_age_seconds"] < 600

    after = json.loads(k2(place, "status", "looked-at", "--json").out)
    assert after["alive"] is False and after["checkpoint_step"] == after["step"]
    assert after["ended"] == "stopped (SIGTERM), a checkpoint saved"
    more = f"--set=run.stop_after_step={after['step'] + 1}"
    assert k2(place, *COMMAND, *LONG, more).code == 0
    again = json.loads(k2(place, "status", "looked-at", "--json").out)
    assert (again["starts"], again["step"], again["ended"]) == (2, after["step"] + 1, "done")
    assert again["eta_seconds"] == 0


def test_a_run_that_is_done(whole_run, place):
    found = json.loads(k2(place, "status", "whole", "--json").out)
    assert (found["step"], found["last_step"], found["valid_step"]) == (8, 8, 8)
    assert (found["alive"], found["ended"], found["starts"]) == (False, "done", 1)
    assert found["checkpoint"] == "runs/whole/checkpoints/step_00000008"


def _with_output_closed(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "k2_megatron", *command]
    done = subprocess.run(words, cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    return done


@pytest.mark.parametrize(
    "command",
    [
        ("status", "whole"),
        ("validate", "tiny.yaml"),
        ("checkpoint", "inspect", "runs/whole/checkpoints/step_00000008"),
        ("launch", "tiny.yaml", *TWO_GPUS, "--gpu=h100", "--dry-run"),
    ],
    ids=lambda command: command[0],
)
def test_a_reader_that_has_enough(whole_run, place, command):
    """As `| head -1`: a traceback, or the interpreter's complaint at its end."""
    done = _with_output_closed(place, *command)
    assert (done.returncode, done.stderr) == (141, "")


def test_work_whose_output_cannot_be_read_is_told(place):
    """What was to be said of it got lost."""
    words = ("data", "prepare", "text", "--output", "corpus/bytes", "--workers=1", "--if-missing")
    done = _with_output_closed(place, *words)
    assert done.returncode not in (0, 141) and "BrokenPipeError" in done.stderr


def test_a_run_that_is_not_there(place):
    assert_refused(k2(place, "status", "nowhere"), "nowhere: not the folder of a run")
