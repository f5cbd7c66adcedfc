# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A thread on each rank that ends the job where no step, save or evaluation gets done any more.

One rank that stands still makes all others wait for it in a collective, so every rank's thread
wakes at about the same time. Each writes the stacks of all its threads and where it stands to the
run folder; the lowest rank that could compares them and says who stands elsewhere; all exit.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from k2_megatron.train.events import EventLog
from k2_megatron.train.guards.hang_report import Standing, hang_report

FAILED = 1
# How long a rank waits for the others' dumps; they wake within a step of each other.
GATHER_SECONDS = 10.0
# A thread of Python's cannot run where C code holds the interpreter: then the dump comes from C.
_LAST_RESORT_SECONDS = 30.0
_POLL_SECONDS = 0.2


class Watchdog:
    """Ends this rank, and by that the job, after so many seconds without a call of `enter`."""

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        timeout_seconds: float,
        events: EventLog,
        exit: Callable[[int], None] = os._exit,
    ) -> None:
        """Touch nothing yet.

        Args:
            folder: where dumps go; seen by all ranks, of this start of the run alone; made when
                it is needed.
            rank: this one.
            world_size: number of ranks.
            timeout_seconds: larger than the longest step, evaluation or save.
            events: that this rank writes to if it is the one that speaks, whichever it is.
            exit: ends the process.
        """
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._timeout, self._events, self._exit = timeout_seconds, events, exit
        self._stage = "starting"
        self._began = time.monotonic()
        self._main = threading.main_thread()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self.enter("starting")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Watch no longer."""
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        if self._thread is not None:
            self._thread.join()

    def enter(self, stage: str) -> None:
        """Note that something was done, and what begins now, for example `step 12`."""
        self._stage, self._began = stage, time.monotonic()
        if _has_descriptor(sys.stderr):
            faulthandler.dump_traceback_later(
                self._timeout + GATHER_SECONDS + _LAST_RESORT_SECONDS, exit=True
            )

    def _watch(self) -> None:
        while not self._stop.wait(min(_POLL_SECONDS, self._timeout / 4)):
            if time.monotonic() - self._began > self._timeout:
                self._end()
                return

    def _end(self) -> None:
        """Dump, wait for the others' dumps, let one rank speak, and exit."""
        try:
            folder = self._folder
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._dump(folder)
            except OSError as error:
                self._speak_alone(error)
            report = folder / "report.txt"
            deadline = time.monotonic() + min(GATHER_SECONDS, self._timeout)
            while (found := _read(folder)).keys() < set(range(self._world_size)):
                if time.monotonic() > deadline or self._stop.wait(_POLL_SECONDS):
                    break
            if self._stop.is_set():
                return
            if self._rank == min(found, default=0):
                self._events.write("hang", stage=self._stage, timeout_seconds=self._timeout)
                if found:
                    self._speak(hang_report(found, self._world_size, self._timeout, folder), report)
            # Who leaves first breaks the others' collectives, and their errors would come first.
            while found and not report.exists() and time.monotonic() < deadline + GATHER_SECONDS:
                self._stop.wait(_POLL_SECONDS)
        finally:
            if not self._stop.is_set():
                sys.stdout.flush()
                self._exit(FAILED)

    def _speak(self, text: str, report: Path) -> None:
        """Say what all ranks' dumps tell, on stderr and in a file that the others wait for."""
        print(f"k2-megatron: {text}", file=sys.stderr, flush=True)
        with suppress(OSError):
            report.write_text(text + "\n")

    def _speak_alone(self, error: OSError) -> None:
        """Say where this rank stands, stacks included, where the disk does not take it."""
        print(
            f"k2-megatron: rank {self._rank} on {socket.gethostname()}: no progress for "
            f"{self._timeout:g} s (run.hang_timeout_seconds) in {self._stage}; its stacks cannot "
            f"be written to {self._folder}: {error.strerror or error}",
            file=sys.stderr,
            flush=True,
        )
        if _has_descriptor(sys.stderr):
            faulthandler.dump_traceback(sys.stderr, all_threads=True)

    def _dump(self, folder: Path) -> None:
        """Write the stacks of all threads, then where the main thread stands, in one rename."""
        with (folder / f"rank_{self._rank:05d}.txt").open("w") as file:
            file.write(f"rank {self._rank} on {socket.gethostname()}, process {os.getpid()}, ")
            file.write(f"in {self._stage} for {time.monotonic() - self._began:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        frame = sys._current_frames().get(self._main.ident or 0)
        standing = Standing.of(self._stage, socket.gethostname(), frame)
        path = folder / f"rank_{self._rank:05d}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(standing.to_json()))
        temporary.replace(path)


def _read(folder: Path) -> dict[int, Standing]:
    """Where the ranks that have dumped so far stand."""
    return {
        int(path.stem.removeprefix("rank_")): Standing.from_json(json.loads(path.read_text()))
        for path in sorted(folder.glob("rank_*.json"))
    }


def _has_descriptor(stream: object) -> bool:
    """Whether faulthandler can write to it from C; it may be None, as where there is no stderr."""
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True
