# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""events.jsonl: what happened to a run beside its steps, a line each, appended by every start."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE_NAME = "events.jsonl"
NEXT_PHASE = "the next phase"
"""Why a run stopped that goes on in other processes by plan."""


class EventLog:
    """Appends events to the file on the one rank that writes; a full disk loses one, no more."""

    def __init__(self, run_folder: Path, *, writes: bool) -> None:
        """Write to `run_folder`/events.jsonl, or nothing where this rank does not write."""
        self._path = run_folder / FILE_NAME
        self._writes = writes

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time."""
        if not self._writes:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}) + "\n"
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def start(self, *, step: int, world_size: int) -> None:
        """Append that training begins, or goes on after `step`."""
        self.write(
            "start",
            step=step,
            world_size=world_size,
            host=socket.gethostname(),
            process=os.getpid(),
            slurm_job=os.environ.get("SLURM_JOB_ID"),
        )


def read_events(run_folder: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first; a line that cannot be read is left out."""
    path = run_folder / FILE_NAME
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("event"), str):
                found.append(values)
    return found
