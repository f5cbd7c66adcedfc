# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Rendered scripts that run: on other numbers of nodes, into another phase, with a dead rank."""

from __future__ import annotations

import pytest

from k2_megatron.train.events import read_events
from tests.cli.commands import k2
from tests.cli.test_phases import PHASED
from tests.cli.test_training import metrics
from tests.slurm.stand_in import run_job


def test_the_same_file_goes_on_with_another_number_of_nodes(place, whole_run):
    """Four steps on one node of two ranks, four on two: batch, text and losses of the whole run."""
    name = "run.name=resized"
    one = run_job(place, "tiny.yaml", name, "run.stop_after_step=4", nodes=1)
    assert one.code == 0 and "1 nodes, 2 ranks, the first at 127.0.0.1:" in one.log, one.log
    two = run_job(place, "tiny.yaml", name, nodes=2)
    assert two.code == 0 and "2 nodes, 4 ranks, the first at 127.0.0.1:" in two.log, two.log
    assert "2 micro-batches a step" in one.log and "1 micro-batches a step" in two.log
    assert "resumed after step 4 from " in two.log and "k2-megatron: the run is done" in two.log

    run = place / "runs" / "resized"
    starts = [event for event in read_events(run) if event["event"] == "start"]
    assert [event["world_size"] for event in starts] == [2, 4]
    assert [event["slurm_job"] is None for event in starts] == [False, False]
    lines, whole = metrics(run), metrics(whole_run[1])
    for key in ("step", "consumed_tokens", "lr"):
        assert [line[key] for line in lines] == [line[key] for line in whole]
    losses, wanted = ([float(str(line["loss"])) for line in found] for found in (lines, whole))
    # fp32 sums over ranks in another order, as in tests/distributed/equality.py.
    assert losses == pytest.approx(wanted, rel=2e-6)
    assert len({round(loss, 3) for loss in wanted}) == 8, "another text would show"


def test_a_phase_of_another_layout_is_requeued_and_goes_on(own_place):
    (own_place / "phased.yaml").write_text(PHASED)
    first = run_job(own_place, "phased.yaml", "run.name=p", nodes=1)
    assert first.requeued and first.code == 0, first.log
    assert "step 4 of 6 is done and saved: phase long needs other processes" in first.log
    second = run_job(own_place, "phased.yaml", "run.name=p", nodes=1)
    assert not second.requeued and second.code == 0, second.log
    assert "resumed after step 4 from " in second.log and "phase long (3 of 3)" in second.log
    assert [line["step"] for line in metrics(own_place / "runs" / "p")] == [1, 2, 3, 4, 5, 6]
    assert "0 restarts, " in k2(own_place, "status", "p").out


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (r"srun: error: n1: task 1: Killed", "srun: error: n1: task 1: Killed"),
        (r'srun: error: Node "n\1" failed', "srun: error: Node n1 failed"),
        ("nothing that names a task", "srun ended with exit code 137"),
    ],
)
def test_status_tells_of_a_rank_that_could_not_speak(own_place, said, told):
    """SLURM's log alone knew of it, and `status` said that the run had ended without a word."""
    job = run_job(own_place, "tiny.yaml", "run.name=k", nodes=2, srun=f"echo '{said}'; exit 137")
    assert job.code == 137 and not job.requeued
    (event,) = read_events(own_place / "runs" / "k")
    assert (event["event"], event["reason"]) == ("rank_failed", told)
    assert f"none is training; ended: {told}\n" in k2(own_place, "status", "k").out
