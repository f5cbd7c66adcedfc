# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Run a function on several gloo ranks and get their results, or a failure with every log."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def run_ranks(
    function: str, world_size: int, *, timeout_seconds: float = 120, **kwargs: Any
) -> list[Any]:
    """Call a job on `world_size` forked ranks with torch.distributed initialised.

    Args:
        function: name of a function of tests/distributed/jobs.py, or a dotted path to another;
            a name, so that the tests' own process need not import the engine.
        kwargs: its arguments.
        world_size: number of ranks.
        timeout_seconds: after which the ranks are killed and the test fails.

    Returns:
        The results in rank order.

    Raises:
        AssertionError: a rank failed; the text holds the end of each rank's log.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        zygote = _zygote()
        job = {
            "function": function if "." in function else f"tests.distributed.jobs.{function}",
            "world_size": world_size,
            "kwargs": kwargs,
            "folder": folder,
            "timeout_seconds": timeout_seconds,
        }
        assert zygote.stdin is not None and zygote.stdout is not None
        pickle.dump(job, zygote.stdin)
        zygote.stdin.flush()
        failed = pickle.load(zygote.stdout)["failed"]
        if failed:
            raise AssertionError(_failure_text(function, failed, Path(folder)))
        return [
            torch.load(Path(folder) / f"rank_{rank}.pt", weights_only=False)
            for rank in range(world_size)
        ]


@cache
def _zygote() -> subprocess.Popen[bytes]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    environment["PYTHONFAULTHANDLER"] = "1"  # the log of a rank that crashes says where
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    atexit.register(process.kill)
    return process


def _failure_text(name: str, failed: dict[int, str], folder: Path) -> str:
    lines = [f"{name} failed on {len(failed)} rank(s)"]
    for rank, reason in sorted(failed.items()):
        log = folder / f"rank_{rank}.log"
        text = log.read_text(errors="replace") if log.exists() else "(no log)"
        lines += [f"--- rank {rank} {reason}; its log ends:", text[-3000:]]
    return "\n".join(lines)
