# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Hand out samples to data-parallel ranks in an order that does not depend on their number.

Step t trains on samples t*GBS..(t+1)*GBS-1. Its micro-batch j of rank r is the samples
t*GBS + (j*DP + r)*MBS + 0..MBS-1, so that any DP splits the same global batch.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from k2_megatron.errors import DataError


class MicroBatchSampler(Sampler[list[int]]):
    """Yields the sample indices of one rank's micro-batches, whole global batches only."""

    def __init__(
        self,
        *,
        num_samples: int,
        consumed_samples: int,
        micro_batch_size: int,
        global_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
    ) -> None:
        """Start after `consumed_samples` of `num_samples`.

        Raises:
            DataError: The global batch is no multiple of micro batch and data-parallel size, or
                a number is out of range.
        """
        for name, value, low in (
            ("num_samples", num_samples, 0),
            ("consumed_samples", consumed_samples, 0),
            ("micro_batch_size", micro_batch_size, 1),
            ("global_batch_size", global_batch_size, 1),
            ("data_parallel_size", data_parallel_size, 1),
        ):
            if value < low:
                raise DataError(f"{name}: {value}; allowed: {low} or more")
        assert 0 <= data_parallel_rank < data_parallel_size
        per_round = micro_batch_size * data_parallel_size
        if global_batch_size % per_round:
            raise DataError(
                f"global_batch_size: {global_batch_size}; allowed: a multiple of micro_batch_size"
                f" {micro_batch_size} times data-parallel size {data_parallel_size}"
            )
        if consumed_samples > num_samples:
            raise DataError(
                f"{consumed_samples} samples are consumed already, and there are {num_samples}"
            )
        self.num_microbatches = global_batch_size // per_round
        """Micro-batches of one rank in a step."""
        self._start = consumed_samples
        self._micro = micro_batch_size
        self._global = global_batch_size
        self._rank = data_parallel_rank
        self._size = data_parallel_size
        self._num_steps = (num_samples - consumed_samples) // global_batch_size

    def __len__(self) -> int:
        """Return the number of micro-batches left to this rank."""
        return self._num_steps * self.num_microbatches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of `micro_batch_size` sample indices."""
        for step in range(self._num_steps):
            for micro_batch in range(self.num_microbatches):
                first = (
                    self._start
                    + step * self._global
                    + (micro_batch * self._size + self._rank) * self._micro
                )
                yield list(range(first, first + self._micro))


class BatchIterator:
    """One rank's micro-batches: dicts of tensors [b, s], read ahead by worker processes if wanted.

    Ends after the last whole global batch. To resume, make a new one with `consumed_samples`.
    """

    def __init__(
        self,
        samples: Dataset[dict[str, torch.Tensor]],
        sampler: MicroBatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Start reading.

        Args:
            samples: The set, such as `TokenSamples`.
            sampler: Which of them, in which order.
            num_workers: Processes that read ahead; 0: read when asked.
            pin_memory: Put batches in page-locked memory, for copies to a GPU in the background.

        Raises:
            DataError: `num_workers` is negative.
        """
        self.num_microbatches = sampler.num_microbatches
        """Micro-batches to take for one step."""
        if num_workers < 0:
            raise DataError(f"num_workers: {num_workers}; allowed: 0 or more")
        loader = DataLoader(
            samples,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=stack_samples,
            pin_memory=pin_memory,
            # Forked readers share the mapped indices; pickled ones would each hold a copy.
            multiprocessing_context="fork" if num_workers else None,
            worker_init_fn=_leave_signals_to_parent if num_workers else None,
            # The loader draws a seed for its workers: not from the generator the model uses.
            generator=torch.Generator().manual_seed(0),
        )
        self._batches: Iterator[dict[str, torch.Tensor]] = iter(loader)

    def __iter__(self) -> "BatchIterator":
        """Return itself."""
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        """Return the next micro-batch."""
        return next(self._batches)


def stack_samples(samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack samples [s] into a micro-batch [b, s], key by key."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def _leave_signals_to_parent(worker: int) -> None:
    """Let the trainer decide when to stop: a reader that died first would fail its last step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
