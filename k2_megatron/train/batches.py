# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The text of a run: training batches in order, and the held-out ones from their beginning."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from k2_megatron.config.config import Config
from k2_megatron.config.phases import Phase, phase_at
from k2_megatron.data.corpora import check_corpora
from k2_megatron.data.datasets import TokenSamples, build_datasets
from k2_megatron.data.request import DataOrder, DataRequest, data_order, requests_of
from k2_megatron.data.sampler import BatchIterator, MicroBatchSampler
from k2_megatron.train.session import Session

Batch = dict[str, torch.Tensor]


def check_text(config: Config) -> DataOrder:
    """Open and check every corpus before anything expensive; fingerprints of the data order.

    Raises:
        DataError: a file is missing, truncated or does not fit the model.
    """
    requests = requests_of(config)
    for request in requests:
        check_corpora(request.paths, config.model.vocab_size, verify_index=False)
    return data_order(requests)


def verify_text(config: Config) -> None:
    """Also read every index file, 20 bytes a document: once a run, on one rank.

    Raises:
        DataError: an index is not the one that was written.
    """
    paths = dict.fromkeys(path for request in requests_of(config) for path in request.paths)
    check_corpora(list(paths), config.model.vocab_size)


class Text:
    """This rank's micro-batches. Pipeline stages that see no tokens get empty ones."""

    def __init__(self, session: Session) -> None:
        """Open the datasets of all steps that these processes can train. Collective.

        Raises:
            DataError: the corpora are too small or cannot be read.
        """
        self._session = session
        config = session.run_config
        stages = session.model.layout.chunks(session.topology.pp.rank)
        self._reads = any(s.embedding or s.loss or s.mtp_layers for s in stages)
        here = range(session.first_step_here, session.last_step_here + 1)
        self._rows = [
            (request, *self._open(request, config.data.cache_folder))
            for request in requests_of(config)
            if request.last_step >= here.start and request.first_step < here.stop
        ]

    def _open(
        self, request: DataRequest, cache_folder: str | None
    ) -> tuple[TokenSamples | None, TokenSamples | None]:
        return build_datasets(
            **request.order,
            valid_samples=request.valid_samples,
            cache_folder=cache_folder,
            is_built_on_rank=self._reads,
        )

    def train(self, first_step: int) -> Iterator[list[Batch]]:
        """The global batches of steps `first_step`, `first_step` + 1, ...: micro-batches [b, s]."""
        for request, train, _ in self._rows:
            for phase in request.phases:
                if phase.last_step < first_step:
                    continue
                begin = max(first_step, phase.first_step)
                before = request.phases[0].consumed_samples
                samples = range(
                    phase.consumed_after(begin - 1)[0] - before,
                    phase.consumed_after(phase.last_step)[0] - before,
                )
                yield from self._global_batches(phase, train, samples)

    def valid(self, step: int = 1) -> Iterator[list[Batch]]:
        """The global batches of one validation after a step, the same each time in a phase."""
        phase = phase_at(self._session.phases, step)
        row = next(row for row in self._rows if phase.first_step <= row[0].last_step)
        num_steps = phase.config.logging.valid_steps
        batch = phase.config.schedule.global_batch_size
        return islice(self._global_batches(phase, row[2], range(num_steps * batch)), num_steps)

    def _global_batches(
        self, phase: Phase, samples: TokenSamples | None, numbers: range
    ) -> Iterator[list[Batch]]:
        """The samples of these numbers in the batches of a phase."""
        session = self._session
        schedule = phase.config.schedule
        num_microbatches = session.at(phase.first_step).sizes.num_microbatches
        if not self._reads:
            for _ in range(len(numbers) // schedule.global_batch_size):
                yield [{}] * num_microbatches
            return
        assert samples is not None
        sampler = MicroBatchSampler(
            num_samples=numbers.stop,
            consumed_samples=numbers.start,
            micro_batch_size=schedule.micro_batch_size,
            global_batch_size=schedule.global_batch_size,
            data_parallel_rank=session.topology.dp.rank,
            data_parallel_size=session.topology.dp.size,
        )
        batches = BatchIterator(
            samples,
            sampler,
            num_workers=phase.config.data.num_workers,
            pin_memory=session.platform.pins_memory,
        )
        while micro_batches := list(islice(batches, num_microbatches)):
            yield micro_batches
