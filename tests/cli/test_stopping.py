# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped, or that loses a rank: nothing is lost and no process is left."""

from __future__ import annotations

import signal
import time

from tests.cli.commands import assert_gone, k2, running

# Long enough for a signal to come in the middle.
LONG = ("--set=schedule.train_steps=100000", "--set=logging.valid_every_steps=null")
COMMAND = ("train", "tiny.yaml", "--set=run.name=long", "--set=checkpoint.save_every_steps=null")


def test_signals_save_and_the_same_command_goes_on(place):
    """SIGTERM, then Ctrl-C, then a rank killed: each start goes on where the one before ended."""
    checkpoints = place / "runs" / "long" / "checkpoints"

    with running(place, *COMMAND, *LONG) as run:
        run.wait_for("step      3/100000")
        ranks = run.ranks()
        run.process.send_signal(signal.SIGTERM)
        done = run.done()
    assert done.code == 3 and done.err == "", done
    latest = (checkpoints / "latest").read_text().strip()
    step = int(latest.removeprefix("step_"))
    assert f"stopped by SIGTERM after step {step}; the checkpoint is saved\n" in done.out
    assert_gone(ranks)

    with running(place, *COMMAND, *LONG) as run:
        run.wait_for(f"step {step + 1:6}/100000")
        ranks = run.ranks()
        run.interrupt()
        done = run.done()
    assert done.code == 3
    assert done.err.strip() == (
        "k2-megatron: stopping after this step; Ctrl-C again to end at once"
    )
    assert f"resumed after step {step} from runs/long/checkpoints/" in done.out
    latest = (checkpoints / "latest").read_text().strip()
    step = int(latest.removeprefix("step_"))
    assert f"stopped by SIGINT after step {step}; the checkpoint is saved\n" in done.out
    assert_gone(ranks)

    with running(place, *COMMAND, *LONG) as run:
        run.wait_for(f"step {step + 1:6}/100000")
        ranks = run.ranks()
        assert sorted(ranks) == [0, 1]
        ranks[1].kill()
        began = time.monotonic()
        done = run.done()
    assert done.code == 1
    assert time.monotonic() - began < 15
    assert done.err.count("k2-megatron: rank 1 was killed by SIGKILL") == 1
    assert "runs/long/logs/rank_00001.log: nothing was written by this start" in done.err
    told = "none is training; ended: rank 1 was killed by SIGKILL (out of memory?)\n"
    assert told in k2(place, "status", "long").out
    assert (checkpoints / "latest").read_text().strip() == latest
    assert_gone(ranks)


def test_a_second_command_in_the_same_run_folder_is_refused(place):
    """It would write the same checkpoints under the same names; the first one goes on."""
    command = ("train", "tiny.yaml", "--set=run.name=twice", *COMMAND[3:], *LONG)
    with running(place, *command) as run:
        run.wait_for("step      1/100000")
        second = k2(place, *command)
        run.wait_for("step     30/100000")
        run.process.send_signal(signal.SIGTERM)
        assert run.done().code == 3
    assert second.code == 2
    assert "runs/twice is being trained by process " in second.err
    assert "another run.name" in second.err
