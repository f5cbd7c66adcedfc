# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of the guards by themselves: spikes, slow ranks, skipped steps, and what they say."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

from k2_megatron.config.loader import load_config
from k2_megatron.config.phases import phases_of
from k2_megatron.config.resolve import resolve
from k2_megatron.train.events import EventLog
from k2_megatron.train.guards.findings import Findings, Output, explain
from k2_megatron.train.guards.guards import Guards
from k2_megatron.train.guards.hang_report import Standing, hang_report
from k2_megatron.train.guards.skipped import SkippedSteps
from k2_megatron.train.guards.slowest import SlowestRank
from k2_megatron.train.guards.spikes import MIN_LOSSES, Spike, SpikeGuard
from k2_megatron.train.guards.watchdog import Watchdog


def watched(losses: list[float], **given: int) -> tuple[SpikeGuard, list[Spike]]:
    guard = SpikeGuard(factor=5, steps=given.get("steps", 3), window=given.get("window", 50))
    found = [guard.judge(step, loss) for step, loss in enumerate(losses, 1)]
    return guard, [spike for spike in found if spike is not None]


def noisy(count: int, level: float = 2.0) -> list[float]:
    chance = random.Random(1)
    return [chance.gauss(level, 0.01) for _ in range(count)]


def test_noise_and_a_falling_loss_are_no_spike() -> None:
    assert watched(noisy(2000))[1] == []
    assert watched([10 / (1 + step / 50) for step in range(500)])[1] == []


def test_a_spike_is_known_with_its_last_step_and_begins_with_its_first() -> None:
    _, found = watched([*noisy(60), 2.5, 2.6, math.inf, 2.0])
    (spike,) = found
    assert (spike.first, spike.last, spike.losses) == (61, 63, (2.5, 2.6, math.inf))
    # Median 2, standard deviation 0.01: the limit is 5 of these above.
    assert 2.03 < spike.limit < 2.07
    assert spike.describe().startswith("steps 61 to 63 have losses 2.5000, 2.6000, inf, above 2.0")


def test_high_steps_that_are_not_in_a_row_are_no_spike() -> None:
    guard, found = watched([*noisy(60), *[2.5, 2.6, 2.0] * 20])
    assert found == []
    limit = guard.limit()
    assert limit is not None and limit < 2.1, "high losses count as the course of the run"


def test_nothing_is_judged_before_enough_losses_are_known() -> None:
    assert watched([2.0] * (MIN_LOSSES - 1) + [9.0] * 3)[1] == []
    assert len(watched([2.0] * MIN_LOSSES + [9.0] * 3)[1]) == 1
    assert len(watched([2.0] * 4 + [9.0] * 3, window=4)[1]) == 1


def test_the_state_goes_through_a_checkpoint() -> None:
    guard, _ = watched([*noisy(60), 2.5, math.nan])
    other = SpikeGuard(factor=5, steps=3, window=50)
    other.restore(json.loads(json.dumps(guard.state(), allow_nan=False)))
    spike = other.judge(63, 2.7)
    assert spike is not None and (spike.first, spike.last) == (61, 63)
    other.go_back(spike, SpikeGuard(factor=5, steps=3, window=50).state())
    assert [step for step in range(50, 70) if other.passes_over(step)] == [61, 62, 63]
    assert other.rollbacks == 1 and other.limit() is None
    other.go_back(Spike(70, 72, 1.0, (2.0,)), guard.state())
    assert other.passes_over(61) and other.passes_over(72) and other.rollbacks == 2


def test_a_checkpoint_without_a_guard_makes_it_forget_losses_alone() -> None:
    guard, _ = watched([*noisy(60), 2.5])
    guard.go_back(Spike(61, 61, 2.2, (2.5,)), None)
    assert guard.state() == {"losses": [], "high": [], "passed_over": [[61, 61]], "rollbacks": 1}


PHASES = """\
model: {preset: k2-tiny, vocab_size: 260}
data: {corpora: [{path: a}]}
schedule:
  seq_length: 32
  global_batch_size: 4
  phases:
    - {name: one, steps: 2, lr_style: constant, lr: 1.0e-3}
    - {name: batch, steps: 2, global_batch_size: 8}
    - {name: layout, steps: 2, parallel: {moe_token_dispatcher_type: allgather}}
    - {name: length, steps: 2, seq_length: 64}
    - {name: text, steps: 2, data: {corpora: [{path: b}]}}
"""


def test_losses_and_high_steps_are_forgotten_where_text_or_processes_change(tmp_path: Path) -> None:
    """Losses of another length or text are no measure; a spike begins where one can go back to."""
    (tmp_path / "phases.yaml").write_text(PHASES)
    phases = phases_of(resolve(load_config(tmp_path / "phases.yaml", ["run.name=phases"])))

    def left(step: int) -> tuple[int, int]:
        """How many losses and high steps are known when a step begins."""
        spikes, _ = watched([*noisy(20), 2.5])
        events = EventLog(tmp_path, writes=False)
        Guards(
            skipped=SkippedSteps(),
            spikes=spikes,
            stragglers=None,
            watchdog=Watchdog(tmp_path, rank=0, world_size=1, timeout_seconds=1, events=events),
            events=events,
        ).enter(phases, step)
        return len(spikes.state()["losses"]), len(spikes.state()["high"])

    kept, high_forgotten, forgotten = (20, 1), (20, 0), (0, 0)
    assert [left(step) for step in range(1, 11)] == [
        kept, kept, kept, kept, high_forgotten, kept, forgotten, kept, forgotten, kept,
    ]  # fmt: skip


def test_skipped_steps_in_a_row_begin_anew() -> None:
    counter = SkippedSteps()
    for skipped in (True, True, False, True):
        counter.count(skipped=skipped)
    assert counter.state() == {"total": 3, "in_a_row": 1}


def test_a_slow_rank_is_named_after_enough_reports_in_a_row() -> None:
    rule = SlowestRank(factor=1.5, reports=3)
    slow, even = {0: 1.0, 1: 1.0, 2: 2.0}, {0: 1.0, 1: 1.0, 2: 1.4}
    other = {0: 2.0, 1: 1.0, 2: 1.0}
    assert [rule.judge(slow), rule.judge(slow), rule.judge(even)] == [None] * 3
    assert [rule.judge(slow), rule.judge(slow), rule.judge(other)] == [None] * 3
    found = [rule.judge(slow) for _ in range(6)]
    assert [one is not None for one in found] == [False, False, True, False, False, True]
    assert found[2] is not None and found[2].describe("n7").startswith("rank 2 on n7 is slow: ")
    assert "2.00 times" in found[2].describe("n7")
    two = SlowestRank(factor=1.5, reports=1)
    assert two.judge({0: 1.0, 1: 1.6}) is not None
    assert two.judge({0: 1.0}) is None


def standing(place: str, *, waits: bool, host: str = "n0") -> Standing:
    return Standing(stage="step 7", host=host, place=place, inner=place, waits=waits)


def test_hang_report_names_those_who_stand_elsewhere(tmp_path: Path) -> None:
    found = {rank: standing("a.py:1 all_reduce", waits=True) for rank in range(30) if rank != 9}
    found[9] = standing("b.py:2 read", waits=False, host="n1")
    text = hang_report(found, 32, 480, tmp_path)
    assert text.splitlines() == [
        "no progress for 480 s (run.hang_timeout_seconds); the job ends",
        "  ranks 30, 31: no answer: gone, stopped, or without the interpreter",
        "  rank 9 on n1: step 7: b.py:2 read",
        "  most: ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16 and 13 more: "
        "step 7: a.py:1 all_reduce (it waits for other ranks)",
        "  the others wait for ranks 9, 30, 31",
        f"  stacks of all threads: {tmp_path}",
    ]


def test_ranks_that_all_look_busy_are_not_blamed(tmp_path: Path) -> None:
    """On a GPU ranks that wait for their device stand in no call of torch.distributed."""
    found = {rank: standing("step.py:5 float", waits=False) for rank in range(3)}
    found[3] = standing("a.py:1 barrier", waits=True)
    assert "the others wait for" not in hang_report(found, 4, 9, tmp_path)


def test_where_a_thread_stands_is_read_off_its_frame() -> None:
    found = Standing.of("step 1", "n0", sys._getframe())
    assert found.place.startswith("tests/train/test_guards.py:") or "megatron" in found.place
    assert not found.waits
    assert Standing.from_json(json.loads(json.dumps(found.to_json()))) == found


def findings(host: str = "n0", **given: object) -> Findings:
    empty = {"weights": (), "output": None, "losses": (), "gradients": ()}
    return Findings(host=host, **{**empty, **given})  # type: ignore[arg-type]


def test_the_first_layer_of_the_forward_pass_over_all_ranks_is_told() -> None:
    """What later layers show is its consequence."""
    later = findings(output=Output(order=5, sequence=0, name="layer 5, mlp"))
    first = findings("n1", output=Output(order=2, sequence=3, name="layer 2, mlp.router"))
    text = explain([later, later, first])
    assert "  first in the forward pass: layer 2, mlp.router; rank 2 on n1\n" in text
    assert "layer 5" not in text and "many ranks make them" in text


def test_equal_findings_are_told_once_and_long_lists_are_cut() -> None:
    keys = tuple(f"layers.{number}.router" for number in range(9))
    lines = explain([findings(gradients=keys)] * 6).splitlines()
    assert lines[0] == (
        "  gradients that are not finite: ranks 0, 1, 2, 3 and 2 more on n0: layers.0.router, "
        "layers.1.router, layers.2.router, layers.3.router and 5 more"
    )
    assert len(lines) == 2
