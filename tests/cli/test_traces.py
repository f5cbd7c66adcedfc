# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`logging.trace_steps` as a user meets it: the files, what is in them, and what is refused."""

from __future__ import annotations

import gzip
import json

from tests.cli.commands import k2


def test_chosen_steps_of_chosen_ranks_are_traced(own_place):
    """Two ranks trace one step of three, forward and backward and what goes between them."""
    done = k2(
        own_place,
        "train",
        "tiny.yaml",
        "--set=run.stop_after_step=3",
        "--set=logging.trace_steps='2'",
        "--set=logging.trace_ranks='0-1'",
    )
    assert done.code == 0, done
    folder = own_place / "runs" / "tiny" / "traces"
    assert "traces: step 2 of rank 0-1 in runs/tiny/traces" in done.out
    names = [f"step_00000002_rank_{rank}.json.gz" for rank in (0, 1)]
    assert sorted(path.name for path in folder.iterdir()) == names
    for rank, name in enumerate(names):
        assert (folder / name).stat().st_size < 4_000_000
        trace = json.loads(gzip.decompress((folder / name).read_bytes()))
        assert trace["distributedInfo"]["rank"] == rank
        events = {event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"}
        assert {"aten::mm", "autograd::engine::evaluate_function: MmBackward0"} <= events or any(
            "Backward" in event for event in events
        )
        assert any("gloo" in event for event in events)
    again = k2(
        own_place,
        "train",
        "tiny.yaml",
        "--set=run.stop_after_step=4",
        "--set=logging.trace_steps='2'",
    )
    assert again.code == 0
    assert "traces: none of steps up to 3, which were done before" in again.out


def test_a_rank_that_there_is_not_is_refused(own_place):
    done = k2(
        own_place,
        "train",
        "tiny.yaml",
        "--set=logging.trace_steps='2'",
        "--set=logging.trace_ranks='2'",
    )
    assert done.code == 2 and "Traceback" not in done.err
    assert (
        "logging.trace_ranks: given 2; allowed: ranks from 0 to 1, for this run has 2; no other "
        "rank can be traced" in done.err
    )
    assert not (own_place / "runs" / "tiny" / "metrics.jsonl").exists()
