# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A process that imports the engine once and forks gloo ranks from it.

Importing torch and megatron-core takes ten seconds; forking eight ranks from a process that has
them takes milliseconds. Jobs come over stdin and go back over stdout as pickles; each rank's own
output goes to a log file.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve jobs until stdin closes."""
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but replies may go to the pipe
    _preload()
    while True:
        try:
            job = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(_run(**job), replies)
        replies.flush()


def _preload() -> None:
    import warnings

    warnings.filterwarnings("ignore")  # megatron-core announces every package it misses
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    from k2_megatron.platform.select import current_platform

    current_platform().prepare(0)
    importlib.import_module("tests.distributed.jobs")


def _run(
    function: str, world_size: int, kwargs: dict[str, Any], folder: str, timeout_seconds: float
) -> dict[str, Any]:
    """Fork the ranks of one job and wait; {"failed": {rank: reason}}, empty when all succeeded."""
    children = {}
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            _rank(function, rank, world_size, kwargs, Path(folder), timeout_seconds)
        children[pid] = rank
    deadline = time.monotonic() + timeout_seconds
    failed: dict[int, str] = {}
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in children:
            rank = children.pop(pid)
            if status:
                failed[rank] = f"ended with status {os.waitstatus_to_exitcode(status)}"
                # The others may wait for it for ever: give them a moment to say why.
                deadline = min(deadline, time.monotonic() + 5)
        elif time.monotonic() > deadline:
            for pid, rank in children.items():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                failed.setdefault(rank, "was killed: it did not end in time")
            children = {}
        else:
            time.sleep(0.005)
    return {"failed": failed}


def _rank(
    function: str,
    rank: int,
    world_size: int,
    kwargs: dict[str, Any],
    folder: Path,
    timeout_seconds: float,
) -> None:
    """Be one rank: run the job's function, leave its result in a file, never return."""
    log = os.open(folder / f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        import torch
        import torch.distributed as dist

        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        module, name = function.rsplit(".", 1)
        result = getattr(importlib.import_module(module), name)(**kwargs)
        torch.save(result, folder / f"rank_{rank}.pt")
        dist.barrier()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
