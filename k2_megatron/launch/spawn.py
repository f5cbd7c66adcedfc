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
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

INTERRUPTED = 3
USER_ERROR = 2
# How long ranks get to end by themselves once one has failed.
GRACE_SECONDS = 10.0


def spawn(arguments: Sequence[str], num_ranks: int, log_folder: Path) -> int:
    """Run `python -m k2_megatron ARGUMENTS` as `num_ranks` ranks over loopback.

    Rank 0 keeps the terminal; the others write to LOG_FOLDER/rank_NNNNN.log. SIGTERM, SIGINT and
    SIGUSR1 go on to every rank.

    Returns:
        The exit code of the run: 0, 2 (a user's mistake, which rank 0 or the failed rank's log
        has told), 3 (stopped by a signal with a checkpoint saved), or 1.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        port = _free_port()
        for rank in range(num_ranks):
            ranks.append(_start(arguments, rank, num_ranks, port, log_folder))
        return _wait(ranks, log_folder)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def rank_log(log_folder: Path, rank: int) -> Path:
    """Where a local rank other than 0 writes what it prints."""
    return log_folder / f"rank_{rank:05d}.log"


def _start(
    arguments: Sequence[str], rank: int, num_ranks: int, port: int, log_folder: Path
) -> subprocess.Popen[bytes]:
    cores = os.cpu_count() or 1
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // num_ranks)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "k2_megatron", *arguments]
    # Ranks get signals from the parent alone: a Ctrl-C of the terminal would reach them twice.
    if rank == 0:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with rank_log(log_folder, rank).open("wb") as log:
        return subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(ranks: list[subprocess.Popen[bytes]], log_folder: Path) -> int:
    """Wait for all; after the first failure end the rest and say which rank it was and why."""
    failed: int | None = None
    deadline = float("inf")
    while any(process.poll() is None for process in ranks):
        for rank, process in enumerate(ranks):
            if failed is None and process.poll() not in (None, 0, INTERRUPTED):
                failed, deadline = rank, time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in ranks]
    bad = [rank for rank, code in enumerate(codes) if code not in (0, INTERRUPTED)]
    if not bad:
        return INTERRUPTED if INTERRUPTED in codes else 0
    first = failed if failed is not None else bad[0]
    user_errors = [rank for rank in bad if codes[rank] == USER_ERROR]
    if user_errors:
        if 0 not in user_errors:  # rank 0 prints its own
            _show_log(user_errors[0], codes[user_errors[0]], log_folder)
        return USER_ERROR
    _show_log(first, codes[first], log_folder)
    return 1


def _show_log(rank: int, code: int, log_folder: Path) -> None:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    print(f"k2-megatron: rank {rank} {how}; the other ranks were stopped", file=sys.stderr)
    if rank == 0:
        return
    path = rank_log(log_folder, rank)
    text = path.read_text(errors="replace").rstrip().splitlines()[-15:]
    print("\n".join([f"the end of {path}:", *text]), file=sys.stderr)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
