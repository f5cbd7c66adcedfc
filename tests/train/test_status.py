# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a run from files as they may be at any moment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from k2_megatron.run_folder import RunFolder
from k2_megatron.train import status as status_module
from k2_megatron.train.events import NEXT_PHASE, EventLog
from k2_megatron.train.jsonl import MetricsFileError
from k2_megatron.train.status import find_run, status_of
from k2_megatron.train.status_text import status_text


def line(step: int, **values: Any) -> str:
    base = {"step": step, "loss": 1.0, "grad_norm": 0.5, "consumed_tokens": 10 * step}
    base |= {"step_seconds": 2.0, "tokens_per_second": 5.0, "tflops_per_device": 1.0}
    return json.dumps({**base, **values}) + "\n"


def test_a_run_that_has_written_nothing_yet(tmp_path: Path) -> None:
    found = status_of(RunFolder(tmp_path))
    assert (found.step, found.loss, found.checkpoint, found.alive) == (0, None, None, False)
    text = status_text(found)
    assert "none is training; the last one ended without a word" in text
    assert "no step is logged yet" in text and "none is complete yet" in text


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_the_file_is_read_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """An unfinished last line is not looked at; the last validation may be far back."""
    monkeypatch.setattr(status_module, "_CHUNK_BYTES", chunk)
    lines = [line(step, **({"valid_loss": 3.0} if step == 5 else {})) for step in range(1, 61)]
    lines[-1] = line(60, loss="NaN", extra={"optimizer/skipped_steps": 4.0})
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 61, "lo')
    found = status_of(RunFolder(tmp_path))
    assert (found.step, found.valid_step, found.valid_loss) == (60, 5, 3.0)
    assert (found.step_seconds, found.skipped_steps) == (2.0, 4)
    assert found.to_json()["loss"] is None  # NaN is no JSON
    assert "loss       nan, gradient norm 0.500; validation 3.0000 after step 5" in status_text(
        found
    )


@pytest.mark.parametrize("back", [1, 19, 20, 21, 22])
def test_the_last_validation_is_found_however_far_back(tmp_path: Path, back: int) -> None:
    """The lines of which medians are taken are read first, and none between is lost."""
    lines = [line(step, **({"valid_loss": 3.0} if step == 61 - back else {})) for step in range(61)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines[1:]))
    assert status_of(RunFolder(tmp_path)).valid_step == 61 - back


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line(1) + "rubbish\n")
    with pytest.raises(MetricsFileError, match=r"metrics.jsonl, line 2: .*found b'rubbish'"):
        status_of(RunFolder(tmp_path))


@pytest.mark.parametrize(
    "damage", [b"[1, 2]", b"7", b'{"loss": 1.0}', b"\xff\xfe\x00", b"[" * 5000]
)
def test_any_damage_of_a_line_is_told_as_such(tmp_path: Path, damage: bytes) -> None:
    """A list ended with a traceback."""
    (tmp_path / "metrics.jsonl").write_bytes(line(1).encode() + damage + b"\n")
    with pytest.raises(MetricsFileError, match="line 2: expected one JSON object with an integer"):
        status_of(RunFolder(tmp_path))


@pytest.mark.parametrize("values", [{}, {"loss": 1.0, "extra": [], "tokens_per_second": "x"}])
def test_values_that_are_not_there_are_not_shown(tmp_path: Path, values: dict[str, Any]) -> None:
    """A line without a gradient norm ended with a traceback."""
    speed = {"step_seconds": 1.0, "tokens_per_second": 5.0}
    lines = [json.dumps({"step": 1, **speed}), json.dumps({"step": 2, **values})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = status_of(RunFolder(tmp_path))
    assert (found.step, found.loss, found.skipped_steps) == (2, values.get("loss"), 0)
    text = status_text(found)
    assert "gradient norm" not in text and "5 tokens/s, 1 s a step" in text


def test_events_without_their_values_and_garbage(tmp_path: Path) -> None:
    """Ended with a KeyError, and one of no known kind with a TypeError."""
    lines = [b'{"event": "start"}', b'{"event": ["x"]}', b"\xff\x00", b'{"event": "stopped"}']
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / ".lock").write_bytes(b"\xff\xfe\n")
    found = status_of(RunFolder(tmp_path))
    assert (found.step, found.starts) == (0, 1)
    assert found.ended == "stopped (no reason given), a checkpoint saved"


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([("hang", {}), ("rank_failed", {"reason": "rank 1 ended"})], "ended: no progress"),
        ([("failed", {"reason": "the disk is full\nmore"})], "ended: the disk is full"),
        ([("rank_failed", {"reason": "rank 1 was killed"})], "ended: rank 1 was killed"),
        ([("diagnosis", {}), ("rank_failed", {})], "ended: too many skipped steps"),
        ([("ended", {}), ("start", {})], None),
    ],
)
def test_the_end_is_told_by_who_knows_most(
    tmp_path: Path, events: list[tuple[str, dict[str, str]]], told: str | None
) -> None:
    """What the launcher sees of a rank is the effect of what the run said before."""
    log = EventLog(tmp_path, writes=True)
    log.start(step=0, world_size=2)
    for event, values in events:
        log.write(event, **values)
    assert status_of(RunFolder(tmp_path)).ended == told


def test_a_start_of_the_next_phase_is_no_restart(tmp_path: Path) -> None:
    log = EventLog(tmp_path, writes=True)
    for step, reason in enumerate((NEXT_PHASE, "SIGTERM", NEXT_PHASE)):
        log.start(step=step, world_size=1)
        log.write("stopped", step=step + 1, reason=reason)
    log.start(step=3, world_size=1)
    found = status_of(RunFolder(tmp_path))
    assert (found.starts, found.restarts) == (4, 1)
    assert "faults     1 restart, " in status_text(found)


def test_a_start_with_nothing_to_do_is_no_restart(tmp_path: Path) -> None:
    """The command of a run that is done, given once more, was counted as if the run had failed."""
    log = EventLog(tmp_path, writes=True)
    log.start(step=0, world_size=2)
    for _ in range(3):
        log.write("ended", step=8)
        log.start(step=8, world_size=2)
    log.write("ended", step=8)
    found = status_of(RunFolder(tmp_path))
    assert (found.starts, found.restarts, found.ended) == (4, 0, "done")
    log.start(step=8, world_size=2)  # further, by a longer schedule
    log.write("ended", step=9)
    assert status_of(RunFolder(tmp_path)).restarts == 1


def test_a_job_that_has_not_started(tmp_path: Path) -> None:
    """The folder that `launch` had made was called not the folder of a run."""
    folder = RunFolder(tmp_path)
    folder.slurm_script.write_text("#!/bin/bash\n")
    assert find_run(str(tmp_path)) == folder
    assert "process    not started yet: `launch` has made its job" in status_text(status_of(folder))
    EventLog(tmp_path, writes=True).start(step=0, world_size=1)
    assert not status_of(folder).submitted


def test_events_are_counted_and_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path, writes=True)
    log.start(step=0, world_size=8)
    log.write("rollback", first=3, last=4, to=2)
    log.write("save_failed", in_a_row=1, reason="full")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"half a li\n')
    log.start(step=2, world_size=4)
    EventLog(tmp_path, writes=False).start(step=9, world_size=9)
    found = status_of(RunFolder(tmp_path))
    assert (found.starts, found.rollbacks, found.failed_saves) == (2, 1, 1)
    assert (found.step, found.world_size, found.ended) == (2, 4, None)
    assert "1 restart, 0 skipped steps, 1 rollback, 1 failed save" in status_text(found)


def test_who_trains_is_seen_without_touching_the_lock(tmp_path: Path) -> None:
    """A look that took the lock, even for a moment, could refuse a start."""
    folder = RunFolder(tmp_path)
    lock = folder.claim()
    assert folder.is_claimed() is True
    assert folder.holder() == f"process {os.getpid()} on {socket.gethostname()}"
    lock.close()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder.lock.write_text(f"process {gone.pid} on {socket.gethostname()}\n")
    assert folder.is_claimed() is False
    folder.lock.write_text("process 1 on another-machine\n")
    assert folder.is_claimed() is None
    assert "not to be seen from this machine" in status_text(status_of(folder))
