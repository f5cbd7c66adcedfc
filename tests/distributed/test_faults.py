# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Faults put into the real loop: what the log says, what is lost, what goes on."""

from __future__ import annotations

import json
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from k2_megatron.checkpoint.manifest import read_manifest, write_manifest
from tests.cli.commands import CONFIG
from tests.distributed.fault_runs import (
    DATA_PARALLEL,
    SPIKE,
    assert_same_end,
    events_of,
    run,
    saved,
    steps_of,
)

HOST = socket.gethostname()

# Fault, layout, what the diagnosis says.
SKIPS = [
    (
        "gradient",
        DATA_PARALLEL,
        [
            f"  gradients that are not finite: rank 1 on {HOST}: ",
            f"rank 1 alone makes them: its host {HOST}, or its part of the text",
        ],
    ),
    (
        "activation",
        "parallel.pipeline_model_parallel_size=2",
        [
            "first in the forward pass: layer 0, self_attention.linear_proj; rank ",
            f"loss: rank 1 on {HOST}, micro-batches 0, 1\n",
        ],
    ),
    (
        "weight",
        "parallel.pipeline_model_parallel_size=2",
        [
            f"weights that are not finite: rank 1 on {HOST}: final_norm\n",
            "first in the forward pass: decoder.final_layernorm; rank 1 on ",
            "the weights themselves are broken",
        ],
    ),
    ("loss", DATA_PARALLEL, ["loss: rank 0 on ", "loss: rank 1 on ", "many ranks make them"]),
    (
        "passing",
        DATA_PARALLEL,
        ["repeated, the same micro-batches give finite losses", "it does not repeat"],
    ),
]


@pytest.mark.parametrize(("fault", "layout", "told"), SKIPS, ids=[case[0] for case in SKIPS])
def test_too_many_skipped_steps_end_the_run_with_a_diagnosis(place, fault, layout, told):
    """Weights stay those of step 2; the diagnosis names ranks, layers and matrices."""
    name = f"skips-{fault}"
    limit = "run.max_consecutive_skipped_steps=3"
    results = run(place, name, layout, limit, fault=fault)
    for result in results:
        assert str(result["ended"]).startswith(
            "TrainingStoppedError: training ends after step 5: 3 steps in a row were skipped"
        ), result["ended"]
        for text in told:
            assert text in result["ended"], result["ended"]
        assert result["ended"].endswith(
            f"last checkpoint, untouched: runs/{name}/checkpoints/step_00000004"
        )
        assert result["state"]["skipped"] == {"total": 3, "in_a_row": 3}
        assert result["held"]["updates"] == 2
        assert result["waits_unseen"] == 0, "the watchdog does not see that a rank writes on"
    assert saved(place, name) == [2, 4]
    assert steps_of(place, name) == [1, 2, 3, 4, 5]
    found = events_of(place, name)
    assert [one["event"] for one in found if one["event"] != "saved"] == [
        "skipped", "skipped", "skipped", "diagnosis",
    ]  # fmt: skip


def test_run_that_goes_back_equals_one_that_never_saw_the_text(place):
    """A stop between spike and end changes nothing either."""
    spoilt = (8, 9)
    results = run(place, "spike", *SPIKE, spoilt=spoilt)
    told = "\n".join(results[0]["said"])
    assert re.search(
        r"spike of the loss: steps 8 to 9 have losses [\d.]+, [\d.]+, above [\d.]+; back to step "
        r"6 \(runs/spike/checkpoints/step_00000006\), and the text of steps 8 to 9 is passed over "
        r"\(rollback 1 of 3\)",
        told,
    ), told
    assert results[0]["ended"] == 0
    assert results[0]["waits_unseen"] == 0, "the watchdog does not see that a rank writes on"
    assert steps_of(place, "spike") == [1, 2, 3, 4, 5, 6, 7, 10, 11, 12]
    (event,) = [one for one in events_of(place, "spike") if one["event"] == "rollback"]
    assert (event["first"], event["last"], event["to"]) == (8, 9, 6)

    passed_over = {
        "skipped": {"total": 0, "in_a_row": 0},
        "spikes": {"losses": [], "high": [], "passed_over": [[8, 9]], "rollbacks": 1},
    }
    never_seen = run(place, "never-seen", *SPIKE, spoilt=spoilt, state=passed_over)
    assert never_seen[0]["ended"] == 0 and "spike" not in "\n".join(never_seen[0]["said"])
    assert_same_end(results, never_seen)
    assert results[0]["held"]["updates"] == 10

    first = run(place, "halves", *SPIKE, "run.stop_after_step=10", spoilt=spoilt)
    assert first[0]["ended"] == 0 and first[0]["held"]["updates"] == 8
    # A second start that saw the spoilt text again would go back again.
    second = run(place, "halves", *SPIKE, spoilt=spoilt)
    assert "spike" not in "\n".join(second[0]["said"])
    assert second[0]["state"] == results[0]["state"]
    assert_same_end(results, second)


@pytest.mark.parametrize("guarded", [True, False], ids=["an older one with it", "none with it"])
def test_run_goes_back_to_a_checkpoint_of_a_time_without_the_guard(place, guarded):
    """It was not used, or where an older one had the guard's losses, used and then not understood.

    The losses looked back on are learnt anew.
    """
    name = f"late-{guarded}"
    given = (*SPIKE, "checkpoint.save_every_steps=50", "checkpoint.keep_last=null")
    off = [key for key in given if "spike" not in key]
    run(place, name, *(given if guarded else off), "run.stop_after_step=2")
    run(place, name, *off, "run.stop_after_step=4")
    if not guarded:  # nor did it count skipped steps
        path = place / "runs" / name / "checkpoints" / "step_00000004"
        manifest = read_manifest(path)
        write_manifest(path, replace(manifest, metadata=manifest.metadata | {"guards": {}}))
    never_seen = f"never-{name}"
    shutil.copytree(place / "runs" / name, place / "runs" / never_seen)
    results = run(place, name, *given, spoilt=(9, 10))
    told = "\n".join(results[0]["said"])
    assert "spike of the loss: steps 9 to 10 " in told and "; back to step 4 (" in told, told
    assert results[0]["ended"] == 0 and steps_of(place, name) == [*range(1, 9), 11, 12]
    assert results[0]["state"]["spikes"]["passed_over"] == [[9, 10]]
    assert len(results[0]["state"]["spikes"]["losses"]) == 4

    passed_over = {"losses": [], "high": [], "passed_over": [[9, 10]], "rollbacks": 1}
    state = {"skipped": {"total": 0, "in_a_row": 0}, "spikes": passed_over}
    other = run(place, never_seen, *given, spoilt=(9, 10), state=state)
    assert "spike" not in "\n".join(other[0]["said"])
    assert other[0]["state"] == results[0]["state"]
    assert_same_end(results, other)


def test_damaged_metrics_at_a_rollback_end_all_ranks(place):
    """Rank 0 alone ended, and the others waited for it."""
    for result in run(place, "spike-line", *SPIKE, spoilt=(8, 9), fault="damaged metrics"):
        assert "metrics.jsonl, line 1: expected one JSON object" in str(result["ended"])


def phased(place: Path, name: str, steps: int, changes: str) -> str:
    """A configuration: so many steps, and eight more with changes."""
    head, _, rest = CONFIG.read_text().partition("schedule:\n")
    (place / name).write_text(f"""{head}schedule:
  seq_length: 32
  global_batch_size: 4
  phases:
    - {{name: first, steps: {steps}, lr_style: constant, lr: 4.0e-3}}
    - {{name: second, steps: 8, {changes}}}
data:{rest.partition("data:")[2]}""")
    return name


PHASED_SPIKE = tuple(key for key in SPIKE if not key.startswith("schedule."))


def test_run_that_goes_back_into_an_earlier_phase_reads_its_text(place):
    """A process begun in the later phase had that one's text alone, and read it from its start."""
    name = phased(place, "longer.yaml", 6, "seq_length: 64")
    given = (*PHASED_SPIKE, "checkpoint.save_every_steps=5", "checkpoint.keep_last=null")
    spoilt = (11, 12)
    first = run(place, "back", *given, "run.stop_after_step=11", spoilt=spoilt, file=name)
    assert saved(place, "back") == [5, 10, 11]
    assert [step for step, _ in first[0]["state"]["spikes"]["high"]] == [11]
    shutil.rmtree(place / "runs" / "back" / "checkpoints" / "step_00000010")
    results = run(place, "back", *given, spoilt=spoilt, file=name)
    told = "\n".join(results[0]["said"])
    assert "spike of the loss: steps 11 to 12 " in told and "; back to step 5 (" in told, told
    passed_over = {
        "skipped": {"total": 0, "in_a_row": 0},
        "spikes": {"losses": [], "high": [], "passed_over": [[11, 12]], "rollbacks": 1},
    }
    never_seen = run(place, "not-back", *given, spoilt=spoilt, state=passed_over, file=name)
    assert "spike" not in "\n".join(never_seen[0]["said"])
    assert_same_end(results, never_seen)


def test_spike_at_a_change_of_processes_leaves_a_checkpoint_to_go_back_to(place):
    """It began before the change, and the one of the boundary was removed as part of it."""
    name = phased(place, "other.yaml", 8, "parallel: {moe_token_dispatcher_type: allgather}")
    given = (*PHASED_SPIKE, "checkpoint.save_every_steps=1", "checkpoint.keep_last=null")
    spoilt = (8, 9, 10)
    first = run(place, "across", *given, spoilt=spoilt, file=name)
    assert first[0]["ended"] == 3 and first[0]["state"]["spikes"]["high"][0][0] == 8
    shutil.copytree(place / "runs" / "across", place / "runs" / "damaged")
    results = run(place, "across", *given, spoilt=spoilt, file=name)
    told = "\n".join(results[0]["said"])
    assert "spike of the loss: steps 9 to 10 " in told and "; back to step 8 (" in told, told
    assert results[0]["ended"] == 0

    for result in run(place, "damaged", *given, spoilt=spoilt, file=name, fault="damaged"):
        assert str(result["ended"]) == (
            "CheckpointError: runs/damaged/checkpoints/step_00000007: it goes on in phase first, "
            "and these processes were made for phase second; newer checkpoints are damaged or "
            "cannot be gone back to: move them away and start again"
        )
    assert saved(place, "damaged") == list(range(1, 10)), "removed before another was loaded"


def test_spikes_without_an_end_end_the_run(place):
    """The limit of rollbacks; and without a checkpoint from before the run goes on and says so."""
    results = run(
        place, "spikes", *SPIKE, "run.max_rollbacks=1", "checkpoint.save_every_steps=1",
        spoilt=tuple(range(8, 13)),
    )  # fmt: skip
    for result in results:
        assert str(result["ended"]).startswith("TrainingStoppedError: spike of the loss: steps 10")
        assert "gone back 1 times (run.max_rollbacks)" in result["ended"]
        assert "Steps passed over: 8 to 9" in result["ended"]
    assert saved(place, "spikes")[-1] == 10
    early = run(place, "early", *SPIKE, "checkpoint.save_every_steps=11", spoilt=(8, 9))
    told = "\n".join(early[0]["said"])
    assert "no checkpoint from before it to go back to, training goes on" in told
    assert early[0]["ended"] == 0 and steps_of(place, "early") == list(range(1, 13))


def test_memory_for_saves_in_the_background_is_taken_before_the_first_step(place):
    """So that the first save stops training no longer than the others, or is refused at once."""
    for result in run(place, "poor", DATA_PARALLEL, poor=True):
        assert re.fullmatch(
            r"AgreedCheckpointError: no host memory for saves in the background; "
            r"checkpoint.async_save: false needs none: rank 1: RuntimeError: "
            r"cudaHostRegister: 2 for \d+ bytes",
            str(result["ended"]),
        ), result["ended"]
    assert steps_of(place, "poor") == []
    last = "checkpoint.save_every_steps=8", "checkpoint.save_at_end=false"
    for name, others in {"waiting": ("checkpoint.async_save=false",), "never": last}.items():
        needless = run(place, name, DATA_PARALLEL, *others, poor=True)
        assert [result["ended"] for result in needless] == [0, 0], name


def test_a_rank_that_stands_still_ends_the_job_and_is_named(place):
    """It sleeps while the other waits for it in a collective."""
    with pytest.raises(AssertionError) as caught:
        run(place, "hang", DATA_PARALLEL, "run.hang_timeout_seconds=15", fault="sleep")
    text = str(caught.value)
    assert "was killed: it did not end in time" not in text
    assert "no progress for 15 s (run.hang_timeout_seconds); the job ends" in text
    assert re.search(rf"rank 1 on {HOST}: step 3: .*fault_jobs.py:\d+ _sleep\n", text), text
    assert re.search(r"most: rank 0: step 3: .*\(it waits for other ranks\)\n", text), text
    assert "the others wait for rank 1\n" in text
    folder = place / "runs" / "hang" / "logs" / "hang_in_start_1"
    for rank in range(2):
        stacks = (folder / f"rank_{rank:05d}.txt").read_text()
        assert stacks.startswith(f"rank {rank} on {HOST}, process ")
        assert "fault_jobs.py" in stacks and "in step 3 for " in stacks.splitlines()[0]
    assert (folder / "report.txt").read_text().startswith("no progress for 15 s")


def test_a_slow_rank_is_named(place):
    given = (DATA_PARALLEL, "logging.straggler_factor=3", "logging.straggler_reports=3")
    results = run(place, "slow", *given, fault="slow")
    told = [text for text in results[0]["said"] if "is slow" in text]
    assert told and told[0].startswith(f"warning: rank 1 on {HOST} is slow: its attention takes ")
    assert "in 3 reports in a row; all ranks wait for it" in told[0]
    lines = (place / "runs" / "slow" / "metrics.jsonl").read_text().splitlines()
    extra = json.loads(lines[-1])["extra"]
    assert extra["straggler/slowest_rank"] == 1
    assert extra["straggler/attention_seconds_max"] > 0.02
    assert extra["straggler/attention_seconds_min"] <= extra["straggler/attention_seconds_median"]
