# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Two real processes over gloo, one that dies, and a checkpoint to save: what these tests share."""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from k2_megatron.checkpoint.folder import Saved
from k2_megatron.checkpoint.saving import save
from k2_megatron.errors import CheckpointError

# Forked children share the parent's loaded torch, so a test costs milliseconds, not an import.
FORK = multiprocessing.get_context("fork")
WORLD_SIZE = 2
PATIENCE_SECONDS = 60
LAYOUT = {"tensor_model_parallel_size": 1, "data_parallel_size": WORLD_SIZE}


def payload_of(rank: int, step: int) -> dict[str, Any]:
    """Something different for each rank and step, with every kind of value a trainer has."""
    return {
        "weights": torch.arange(64, dtype=torch.float32) + 1000 * rank + step,
        "half": {"momentum": torch.full((3, 5), rank + step, dtype=torch.bfloat16)},
        "random": (3, [1, 2, 3], None, "text", b"bytes", 0.5, True),
        "step": step,
    }


def save_step(folder: Path, step: int, rank: int, world_size: int, **changes: Any) -> Saved:
    arguments: dict[str, Any] = {
        "rank": rank,
        "world_size": world_size,
        "layout": LAYOUT,
        "metadata": {"consumed_samples": 8 * step},
        **changes,
    }
    payload = arguments.pop("payload", None) or payload_of(rank, step)
    return save(folder, step, payload, **arguments)


def _send(answer: Connection, result: object) -> None:
    """Send a copy: Connection.send would share a tensor's memory with a process about to end."""
    answer.send_bytes(pickle.dumps(result))


def _child(
    task: Callable[[int], Any], rank: int, world_size: int, store: Path, answer: Connection
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=PATIENCE_SECONDS),
        )
        _send(answer, task(rank))
        dist.barrier()
        dist.destroy_process_group()
    except CheckpointError as error:
        _send(answer, error)
    except BaseException:
        _send(answer, AssertionError(traceback.format_exc()))


def run_ranks(task: Callable[[int], Any], store: Path, world_size: int = WORLD_SIZE) -> list[Any]:
    """Run `task(rank)` in processes joined by gloo; returns what each returned.

    A CheckpointError is a result too, and EOFError is that of a process that died.
    """
    children = []
    for rank in range(world_size):
        receive, send = FORK.Pipe(duplex=False)
        child = FORK.Process(target=_child, args=(task, rank, world_size, store, send))
        child.start()
        send.close()
        children.append((child, receive))
    results = []
    for rank, (_, receive) in enumerate(children):
        assert receive.poll(PATIENCE_SECONDS), f"rank {rank} hangs"
        try:
            results.append(pickle.loads(receive.recv_bytes()))
        except EOFError as error:
            results.append(error)
    for child, _ in children:
        child.join(PATIENCE_SECONDS)
    for result in results:
        if isinstance(result, AssertionError):
            raise result
    return results


@pytest.fixture
def two_ranks(tmp_path: Path) -> Callable[[Callable[[int], Any]], list[Any]]:
    """Run a function of the rank in two processes; returns both results, rank 0's first."""
    stores = iter(range(100))

    def run(task: Callable[[int], Any]) -> list[Any]:
        return run_ranks(task, tmp_path / f"store_{next(stores)}")

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a run keeps its checkpoints; not made yet."""
    return tmp_path / "runs" / "demo" / "checkpoints"
