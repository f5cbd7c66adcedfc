# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Kill -9 while a run trains and saves: it goes on from a whole checkpoint and ends the same.

`make soak` kills more often.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from k2_megatron.checkpoint.folder import find, list_steps
from k2_megatron.checkpoint.inspection import inspect
from tests.distributed.equality import CONFIG
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

NUM_KILLS = int(os.environ.get("K2_MEGATRON_SOAK_KILLS", "5"))
JOB = "tests.distributed.checkpoint_jobs.train_until_killed"
LAYOUT = Layout(world_size=2, ep=2)
MUONCLIP = ("optimizer.type=muonclip", "optimizer.qk_clip_threshold=0.02")


def run(folder: Path, last: int, seconds: float | None) -> list[dict[str, Any]]:
    given = [*LAYOUT.overrides(), *MUONCLIP, f"run.folder={folder}", "checkpoint.keep_last=2"]
    return run_ranks(
        JOB,
        2,
        timeout_seconds=120 + 5 * last,
        config_path=CONFIG,
        overrides=given,
        last=last,
        seconds=seconds,
    )


def newest(checkpoints: Path) -> int:
    """The step of the newest whole checkpoint; everything that has a name is whole."""
    for path in list_steps(checkpoints).values():
        assert inspect(path).problems == (), path
    whole = find(checkpoints)
    return int(whole[-1].name.removeprefix("step_")) if whole else 0


@pytest.mark.timeout(600 + 60 * NUM_KILLS)
def test_killed_runs_end_as_the_one_never_killed(tmp_path: Path) -> None:
    last = 4 * NUM_KILLS
    run(tmp_path / "first", 1, None)  # imports the engine
    start = _seconds(tmp_path / "start", 1)[0]
    seconds, whole = _seconds(tmp_path / "whole", last)
    chance = random.Random(os.environ.get("K2_MEGATRON_SOAK_SEED", "1"))
    folder = tmp_path / "killed"
    killed, reached, torn, ended = 0, 0, 0, False
    while killed < NUM_KILLS:
        # A kill every few steps on the average, and at times before the first.
        moment = start * 0.7 + chance.random() * 1.5 * (seconds - start) / NUM_KILLS
        try:
            assert_same_end(whole, run(folder, last, moment))
        except AssertionError as error:
            assert "ended with status -9" in str(error), str(error)
        else:  # it was done before its time: another one is killed from the start
            shutil.rmtree(folder)
            reached, ended = 0, True
            continue
        killed += 1
        torn += len(list((folder / "small" / "checkpoints").glob("*.partial")))
        now = newest(folder / "small" / "checkpoints")
        assert now >= reached, "a checkpoint has been lost"
        reached = now
    resumed = run(folder, last, None)
    print(f"{killed} kills, {torn} in the middle of a save; last restart after step {reached}")
    assert {result["started_after"] for result in resumed} == {reached}
    assert reached > 0 or ended
    assert_same_end(whole, resumed)


def assert_same_end(whole: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> None:
    """Router biases and all parameters, bit for bit."""
    for one, other in zip(whole, resumed, strict=True):
        assert one["biases"] == other["biases"]
        for (key, rows, cols, values), again in zip(
            one["parameters"], other["parameters"], strict=True
        ):
            assert (key, rows, cols) == again[:3]
            assert torch.equal(values, again[3]), f"{key} {rows} {cols}"


def _seconds(folder: Path, last: int) -> tuple[float, list[dict[str, Any]]]:
    """How long a run takes, and what it leaves."""
    began = time.monotonic()
    found = run(folder, last, None)
    return time.monotonic() - began, found
