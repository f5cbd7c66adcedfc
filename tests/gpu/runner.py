# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Run jobs of tests/distributed on real devices, all of one world size in one start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from k2_megatron.launch.ports import free_port

ROOT = Path(__file__).parents[2]


def run_jobs(
    jobs: list[dict[str, Any]],
    world_size: int,
    folder: Path,
    *,
    platform: str = "cuda",
    timeout_seconds: float = 420,
) -> dict[str, list[Any]]:
    """Run jobs `{"name", "function", "kwargs"}` on `world_size` ranks, one after the other.

    Returns:
        Results in rank order by job name; a string in place of a result is that rank's traceback,
        or says that the time was over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    port, ranks = free_port(), []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "K2_MEGATRON_PLATFORM": platform,
            # Fused functions are compiled anew when shapes or dtypes change, with other roundings,
            # so that a run's bits would depend on the jobs before it.
            "TORCH_COMPILE_DISABLE": "1",
            # A container's share of a large host is less than the cores PyTorch counts.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"),
            # Transformer Engine lets fp32 products take tf32 whatever PyTorch is told.
            "NVIDIA_TF32_OVERRIDE": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        if platform == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        log = (folder / f"rank_{rank}.log").open("wb")
        command = [sys.executable, "-W", "ignore", "-m", "tests.gpu.worker", str(folder)]
        ranks.append(
            subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        )
    deadline = time.monotonic() + timeout_seconds
    try:
        for process in ranks:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        print(f"{folder.name}: time is over, the remaining jobs have no result")
    finally:
        for process in ranks:
            process.kill()
    return {
        job["name"]: [_result(folder, job["name"], rank) for rank in range(world_size)]
        for job in jobs
    }


def _result(folder: Path, name: str, rank: int) -> Any:
    path = folder / f"{name}.rank_{rank}.pt"
    if path.exists():
        return torch.load(path, weights_only=False)
    error = folder / f"{name}.rank_{rank}.error"
    log = (folder / f"rank_{rank}.log").read_text(errors="replace")[-4000:]
    return f"{error.read_text() if error.exists() else 'no result'}\n--- log of rank {rank}:\n{log}"
