# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Disks that are full for a while, for ever, or at the end: what is lost, what goes on."""

from __future__ import annotations

import re

import pytest

from tests.distributed.fault_runs import (
    DATA_PARALLEL,
    SPIKE,
    assert_same_end,
    points_of,
    run,
    saved,
    steps_of,
)


@pytest.mark.parametrize(
    ("asynchronous", "fault"), [("true", "full disk"), ("false", "full disk twice")]
)
def test_full_disk_is_survived(place, asynchronous, fault):
    """Saves fail, metrics too; training goes on and ends as if nothing had been."""
    name = f"full-{asynchronous}"
    given = (DATA_PARALLEL, f"checkpoint.async_save={asynchronous}", "checkpoint.keep_last=null")
    # Of those that wait, two in a row would be too many.
    limit = f"checkpoint.max_failed_saves={3 if asynchronous == 'true' else 2}"
    results = run(place, name, *given, limit, "logging.tensorboard=true", fault=fault)
    told = "\n".join(results[0]["said"])
    assert results[0]["ended"] == 0, results[0]
    # In the background a later one may be written when there is room again.
    for step in (2, 6) if asynchronous == "false" else (2,):
        assert re.search(
            rf"warning: saving step {step} in runs/{name}/checkpoints failed, earlier checkpoints "
            rf"are untouched: .*OSError: \[Errno 27\] File too large.*; training goes on, the next "
            rf"save tries again \(failed in a row: 1 of \d\)",
            told,
        ), told
    if asynchronous == "false":
        assert saved(place, name) == [4, 8]
    else:
        assert 2 not in saved(place, name) and saved(place, name)[-2:] == [6, 8]
    assert "JsonlWriter cannot write, training goes on" in told
    assert steps_of(place, name) == list(range(1, 9))
    # TensorBoard's thread ended with the first error: nothing more was recorded, however much room.
    unrecorded = (2, 3, 4) if fault == "full disk" else (2, 3, 6, 7)
    assert points_of(place, name) == [step for step in range(1, 9) if step not in unrecorded]
    assert "TensorBoardWriter cannot write, training goes on" in told
    assert_same_end(results, run(place, f"room-{asynchronous}", *given))


def test_disk_that_is_full_at_the_end_costs_the_last_metrics_alone(place):
    """Closing their files raised, and a run with its last checkpoint saved ended with an error."""
    given = (DATA_PARALLEL, "checkpoint.async_save=false", "logging.tensorboard=true")
    saves = ("checkpoint.save_every_steps=7", "checkpoint.save_at_end=false")
    results = run(place, "full-end", *given, *saves, fault="full disk at the end")
    assert [result["ended"] for result in results] == [0, 0]
    told = [text for text in results[0]["said"] if "cannot write" in text]
    assert [text.partition(":")[2].split()[0] for text in told] == [
        "JsonlWriter", "TensorBoardWriter",
    ]  # fmt: skip
    assert saved(place, "full-end") == [7]
    assert steps_of(place, "full-end") == points_of(place, "full-end") == list(range(1, 8))


def test_full_disk_that_stays_full_ends_the_run(place):
    """One rank's disk is enough; the checkpoint from before is whole."""
    given = (DATA_PARALLEL, "checkpoint.max_failed_saves=2", "checkpoint.async_save=false")
    for result in run(place, "fuller", *given, fault="full disk for ever"):
        assert str(result["ended"]).startswith("CheckpointError: saving step 6 in ")
        assert "rank 1: OSError: [Errno 27] File too large" in result["ended"]
        assert "2 saves in a row have failed (checkpoint.max_failed_saves 2)" in result["ended"]
    assert saved(place, "fuller") == [2]


def test_full_disk_at_a_rollback_costs_no_line(place):
    """Rank 0 ended with a traceback, and the others waited for it."""
    results = run(
        place, "spike-full", *SPIKE, "checkpoint.async_save=false", "logging.tensorboard=true",
        spoilt=(8, 9), fault="full disk of metrics",
    )  # fmt: skip
    told = "\n".join(results[0]["said"])
    for writer in ("JsonlWriter", "TensorBoardWriter"):
        assert f"{writer} cannot write, training goes on" in told and "back to step 6" in told
    assert results[0]["ended"] == 0
    assert steps_of(place, "spike-full") == [1, 2, 3, 4, 5, 6, 7, 10, 11, 12]
    assert points_of(place, "spike-full") == [1, 2, 3, 4, 5, 6, 7, 10, 11, 12]
