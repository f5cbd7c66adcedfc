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

from k2_megatron.checkpoint.data_file import Holding
from k2_megatron.checkpoint.folder import Keeping, Saved
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.resume import load
from k2_megatron.checkpoint.saving import Belonging, Saver
from k2_megatron.errors import CheckpointError
from k2_megatron.parallel.model_space import Region
from k2_megatron.parallel.rectangles import row_rectangles

# Forked children share the parent's loaded torch, so a test costs milliseconds, not an import.
FORK = multiprocessing.get_context("fork")
WORLD_SIZE = 2
PATIENCE_SECONDS = 60
IDENTITY = {"model.hidden_size": 6, "optimizer": "adamw"}
SHAPES = {"weight/matrix": (8, 6)}
LAYOUT = {"tensor_model_parallel_size": 1, "data_parallel_size": WORLD_SIZE}


def payload_of(rank: int, step: int) -> dict[str, Any]:
    """What belongs to one rank: different for each, with every kind of value a trainer has."""
    return {
        "weights": torch.arange(64, dtype=torch.float32) + 1000 * rank + step,
        "half": {"momentum": torch.full((3, 5), rank + step, dtype=torch.bfloat16)},
        "random": (3, [1, 2, 3], None, "text", b"bytes", 0.5, True),
        "step": step,
    }


def matrix_of(step: int) -> torch.Tensor:
    """The one matrix of these checkpoints, [8, 6]."""
    return torch.arange(48, dtype=torch.float32).view(8, 6) + 1000 * step


def holdings_of(rank: int, world_size: int, step: int) -> list[Holding]:
    """This rank's rows of the matrix, cut in the middle of a row where there are two ranks."""
    cuts = [0, 48] if world_size == 1 else [0, 20, 48]
    begin, end = cuts[rank], cuts[rank + 1]
    places = tuple(
        Region(key="matrix", rows=rows, cols=cols) for rows, cols in row_rectangles(begin, end, 6)
    )
    return [
        Holding(kind="weight", regions=places, values=matrix_of(step).flatten()[begin:end].clone())
    ]


def saver(folder: Path, rank: int, world_size: int, **changes: Any) -> Saver:
    belonging = Belonging(
        layout=changes.pop("layout", LAYOUT),
        identity=changes.pop("identity", IDENTITY),
        shapes=changes.pop("shapes", SHAPES),
    )
    return Saver(folder, Ranks(rank, world_size), belonging, **changes)


def save_step(folder: Path, step: int, rank: int, world_size: int, **changes: Any) -> Saved:
    payload = changes.pop("payload", None) or payload_of(rank, step)
    holdings = changes.pop("holdings", None) or holdings_of(rank, world_size, step)
    metadata = changes.pop("metadata", {"consumed_samples": 8 * step})
    keeping = Keeping(last=changes.pop("keep_last", None), every_steps=changes.pop("every", None))
    found = saver(folder, rank, world_size, keeping=keeping, **changes)
    (saved,) = found.start(step, holdings, payload, metadata) + found.finish()
    return saved


def load_matrix(path: Path, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """This rank's elements of the matrix, loaded, flat."""
    holdings = holdings_of(rank, world_size, 0)
    holdings[0].values.fill_(-1)
    load(path, holdings, SHAPES, Ranks(rank, world_size))
    return holdings[0].values


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
