# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The order of samples is that of the data, whatever the data-parallel size and after a resume."""

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from k2_megatron.data.sampler import BatchIterator, MicroBatchSampler
from k2_megatron.errors import DataError


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """Sample i is the number i, three times."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        assert 0 <= index < self.count
        return {"tokens": torch.full((3,), index), "loss_mask": torch.ones(3)}


def sampler(rank: int, size: int, **change: int) -> MicroBatchSampler:
    numbers = {
        "num_samples": 50,
        "consumed_samples": 0,
        "micro_batch_size": 2,
        "global_batch_size": 8,
        "data_parallel_rank": rank,
        "data_parallel_size": size,
    }
    return MicroBatchSampler(**(numbers | change))


def global_batches(size: int, **change: int) -> list[list[int]]:
    """Run all ranks and put their micro-batches together in the documented order."""
    ranks = [list(sampler(rank, size, **change)) for rank in range(size)]
    assert all(len(rank) == len(sampler(0, size, **change)) for rank in ranks)
    per_step = sampler(0, size, **change).num_microbatches
    flat = [rank[micro] for micro in range(len(ranks[0])) for rank in ranks]
    lists = [flat[i : i + per_step * size] for i in range(0, len(flat), per_step * size)]
    return [[index for micro in step for index in micro] for step in lists]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_global_batch_is_the_next_samples_in_order(size: int) -> None:
    expected = [list(range(step * 8, step * 8 + 8)) for step in range(6)]
    assert global_batches(size) == expected


@pytest.mark.parametrize("size", [1, 2, 4])
def test_resume_goes_on_where_any_other_size_stopped(size: int) -> None:
    assert global_batches(size, consumed_samples=24) == global_batches(1)[3:]


def test_formula() -> None:
    rank = list(sampler(1, 2, consumed_samples=8))
    steps = [(step, micro) for step in (1, 2, 3, 4, 5) for micro in (0, 1)]
    assert rank == [
        [step * 8 + (micro * 2 + 1) * 2, step * 8 + (micro * 2 + 1) * 2 + 1]
        for step, micro in steps
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_stacked_and_end_with_the_last_whole_global_batch(num_workers: int) -> None:
    batches = BatchIterator(Numbers(50), sampler(1, 2), num_workers=num_workers)
    assert batches.num_microbatches == 2
    taken = list(batches)
    assert len(taken) == 12
    assert all(tuple(batch["tokens"].shape) == (2, 3) for batch in taken)
    assert taken[0]["tokens"][:, 0].tolist() == [2, 3]
    assert taken[11]["tokens"][:, 0].tolist() == [46, 47]
    assert set(taken[0]) == {"tokens", "loss_mask"}
    with pytest.raises(StopIteration):
        next(batches)


def test_reading_leaves_the_models_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(BatchIterator(Numbers(50), sampler(0, 1)))
    assert torch.equal(torch.rand(3), expected)


def test_readers_survive_signals_meant_for_the_trainer() -> None:
    batches = BatchIterator(Numbers(50), sampler(0, 1), num_workers=1)
    next(batches)
    (reader,) = batches._batches._workers  # type: ignore[attr-defined]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(reader.pid, number)
    assert len(list(batches)) == 23


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"global_batch_size": 6},
            "global_batch_size: 6; allowed: a multiple of micro_batch_size 2 times data-parallel"
            " size 2",
        ),
        ({"micro_batch_size": 0}, "micro_batch_size: 0; allowed: 1 or more"),
        ({"global_batch_size": 0}, "global_batch_size: 0; allowed: 1 or more"),
        ({"consumed_samples": -1}, "consumed_samples: -1; allowed: 0 or more"),
        ({"num_samples": -1}, "num_samples: -1; allowed: 0 or more"),
        ({"consumed_samples": 51}, "51 samples are consumed already, and there are 50"),
    ],
)
def test_refusals(change: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sampler(0, 2, **change)
    with pytest.raises(DataError, match="num_workers: -1; allowed: 0 or more"):
        BatchIterator(Numbers(1), sampler(0, 1), num_workers=-1)
