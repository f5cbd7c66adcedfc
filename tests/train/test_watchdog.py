# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the watchdog leaves behind, also where the disk takes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from k2_megatron.train.events import read_events

WATCHED = """
import sys, time
from pathlib import Path
from k2_megatron.train.events import EventLog
from k2_megatron.train.guards.watchdog import Watchdog
run = Path(sys.argv[1])
events = EventLog(run, writes=True)
dog = Watchdog(
    run / "logs" / "hang", rank=3, world_size=4, timeout_seconds=0.4, events=events
)
with dog:
    dog.enter("step 12")
    time.sleep(60)
"""


def _hang(folder: Path) -> str:
    """Stand still as rank 3 of 4, of which no other answers; what it says."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 1, done
    return done.stderr


def test_the_rank_that_speaks_writes_an_event(tmp_path: Path) -> None:
    """`status` said that the run had ended without a word; rank 0 need not be the one that can."""
    assert "no progress for 0.4 s (run.hang_timeout_seconds); the job ends" in _hang(tmp_path)
    events = read_events(tmp_path)
    assert [(event["event"], event["stage"]) for event in events] == [("hang", "step 12")]


def test_a_rank_whose_disk_is_full_says_where_it_stands(tmp_path: Path) -> None:
    """The process ended without a word."""
    (tmp_path / "logs").write_text("a file in the place of the folder")
    told = _hang(tmp_path)
    assert "no progress for 0.4 s (run.hang_timeout_seconds) in step 12; its stacks cannot" in told
    assert "k2-megatron: rank 3 on " in told and "Not a directory" in told
    assert "in <module>" in told  # the stack, on stderr in place of the file
