# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Start the ranks of a run on this machine and wait for them: one fails, all end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from io import FileIO
from pathlib import Path
from types import FrameType

from k2_megatron.launch.ports import free_port
from k2_megatron.launch.signals import PARENT_PIPE

INTERRUPTED = 3
USER_ERROR = 2
FAILED = 1
# How long ranks get to end by themselves once one has failed.
GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.05
_LOG_LINES_SHOWN = 15
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def spawn(
    command: Sequence[str],
    num_ranks: int,
    log_folder: Path,
    again: Callable[[], bool] = lambda: False,
    failed: Callable[[str], None] = lambda text: None,
) -> int:
    """Run `command` as `num_ranks` ranks over loopback.

    Rank 0 keeps the terminal; the others write to the end of LOG_FOLDER/rank_NNNNN.log. SIGTERM,
    SIGINT and SIGUSR1 go on to every rank, a closed terminal (SIGHUP) as SIGTERM. No rank outlives
    this call.

    Args:
        command: of each rank.
        num_ranks: how many.
        log_folder: made if it is not there.
        again: asked where the ranks have saved and ended without a signal: whether to start them
            anew, for a phase that needs other processes.
        failed: told which rank failed and how.

    Returns:
        The exit code of the run: 0; 2, a user's mistake, which rank 0 or what is shown of a rank's
        log has told; 3, stopped by a signal with a checkpoint saved; 128 + number, ended by a
        signal at once; 1, a rank failed.
    """
    while True:
        code, by_signal = _spawn_once(command, num_ranks, log_folder, failed)
        if code != INTERRUPTED or by_signal or not again():
            return code


def _spawn_once(
    command: Sequence[str], num_ranks: int, log_folder: Path, failed: Callable[[str], None]
) -> tuple[int, bool]:
    """Start the ranks and wait for them; the exit code, and whether a signal came."""
    ranks = _Ranks(log_folder)
    before = {number: signal.signal(number, ranks.forward) for number in _FORWARDED}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, ranks.forward)
    try:
        ranks.start(command, num_ranks)
        ranks.wait()
        return ranks.report(failed), ranks.got_signal
    finally:
        ranks.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def rank_log(log_folder: Path, rank: int) -> Path:
    """Where a local rank other than 0 writes what it prints, start after start."""
    return log_folder / f"rank_{rank:05d}.log"


class _Ranks:
    """The processes of one run, and what became of them."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._log_begins: dict[int, int] = {}  # by rank: where this start does, in bytes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._culprit: int | None = None
        self._signal: int | None = None
        self._starting = True
        self._held: list[int] = []
        # Ours alone: the ranks see it close when this process ends, however that comes.
        self._pipe, self._writing = os.pipe()

    @property
    def got_signal(self) -> bool:
        """Whether one was passed on to the ranks."""
        return self._signal is not None

    def start(self, command: Sequence[str], num_ranks: int) -> None:
        """Start all ranks; a signal in between leaves out the rest.

        It is held until the ranks that were started are known: one that a signal finds half
        started would miss it, and it comes once.
        """
        self._log_folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        for rank in range(num_ranks):
            if self._signal is None:
                self._start_one(command, rank, num_ranks, port)
        self._starting = False  # from here on signals are passed on as they come
        for number in self._held:
            self._send(number)

    def _start_one(self, command: Sequence[str], rank: int, num_ranks: int, port: int) -> None:
        environment = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_ranks)),
            **os.environ,
            "PYTHONUNBUFFERED": "1",  # a rank that is killed has said what it had to say
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),  # not that of a launcher around this command
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            PARENT_PIPE: str(self._pipe),
        }
        log = None if rank == 0 else self._open_log(rank, num_ranks)
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[self._pipe],
                # A Ctrl-C of the terminal would reach the ranks twice, and from there only once.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
            )
        finally:
            if log is not None:
                log.close()
        self._processes.append(process)

    def _open_log(self, rank: int, num_ranks: int) -> FileIO:
        """The log of a rank, ready for this start's lines.

        What is there stays: the last words of a rank that failed, or the lines of one that runs,
        because whether another command trains in the folder is found out by the ranks.
        """
        log = rank_log(self._log_folder, rank).open("ab", buffering=0)
        here = f"started by process {os.getpid()} on {socket.gethostname()}"
        head = f"--- {datetime.now():%Y-%m-%d %H:%M:%S}: rank {rank} of {num_ranks}, {here}\n"
        with suppress(OSError):  # a full disk, on which a rank can still train
            log.write(("\n" * bool(log.tell()) + head).encode())
        self._log_begins[rank] = log.tell()
        return log

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on to every rank that is left."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        if self._signal is None and number == signal.SIGINT:
            text = b"\nk2-megatron: stopping after this step; Ctrl-C again to end at once\n"
            os.write(sys.stderr.fileno(), text)
        self._signal = number
        if self._starting:
            self._held.append(number)
        else:
            self._send(number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> None:
        """Wait for all; once one has failed the others get GRACE_SECONDS."""
        deadline = float("inf")
        while any(process.poll() is None for process in self._processes):
            if self._culprit is None:
                self._culprit = self._worst()
                if self._culprit is not None:
                    deadline = time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                self._kill()
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End what is left at once."""
        self._kill()
        os.close(self._pipe)
        os.close(self._writing)

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def report(self, failed: Callable[[str], None]) -> int:
        """Say on stderr which rank failed and why; the exit code of the run."""
        codes = [process.returncode for process in self._processes]
        culprit = self._worst() if self._culprit is None else self._culprit
        if culprit is None and codes:
            return INTERRUPTED if INTERRUPTED in codes else 0
        if USER_ERROR in codes:
            self._show_log(codes.index(USER_ERROR))
            return USER_ERROR
        if self._signal is not None and (culprit is None or codes[culprit] == -self._signal):
            name = signal.Signals(self._signal).name
            _say(f"ended at once by {name}; the same command goes on from the last checkpoint")
            return 128 + self._signal
        assert culprit is not None, "only a signal keeps all ranks from starting"
        others = "; the other ranks were stopped" if len(codes) > 1 else ""
        text = f"rank {culprit} {_how(codes[culprit])}"
        failed(text)
        _say(f"{text}{others}")
        self._show_log(culprit)
        return FAILED

    def _worst(self) -> int | None:
        """Of the ranks that have failed so far the one most likely to be the cause."""
        failed = {
            rank: process.returncode
            for rank, process in enumerate(self._processes)
            if process.poll() not in (None, 0, INTERRUPTED)
        }
        # A rank whose peer is gone ends with a traceback, never by itself with a signal.
        return min(failed, key=lambda rank: failed[rank] > 0, default=None)

    def _show_log(self, rank: int) -> None:
        if rank == 0:  # it has told its own on the terminal
            return
        path = rank_log(self._log_folder, rank)
        with path.open("rb") as log:
            log.seek(self._log_begins[rank])
            text = log.read().decode(errors="replace").rstrip().splitlines()[-_LOG_LINES_SHOWN:]
        head = f"the end of {path}:" if text else f"{path}: nothing was written by this start"
        print("\n".join([head, *text]), file=sys.stderr)


def _how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _say(text: str) -> None:
    print(f"k2-megatron: {text}", file=sys.stderr)
