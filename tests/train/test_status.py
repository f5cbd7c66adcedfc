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
from k2_megatron.train.events import EventLog
from k2_megatron.train.jsonl import MetricsFileError
from k2_megatron.train.status import status_of
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
    assert "no step is logged yet" in text and "none is whole yet" in text


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


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line(1) + "rubbish\n")
    with pytest.raises(MetricsFileError, match=r"metrics.jsonl.*found b'rubbish'"):
        status_of(RunFolder(tmp_path))


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
