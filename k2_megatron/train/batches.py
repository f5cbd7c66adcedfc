# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The text of a run: training batches in order, and the held-out ones from their beginning."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from k2_megatron.config.config import Config
from k2_megatron.data.corpora import check_corpora
from k2_megatron.data.datasets import TokenSamples, build_datasets
from k2_megatron.data.order import data_fingerprint
from k2_megatron.data.request import DataRequest
from k2_megatron.data.sampler import BatchIterator, MicroBatchSampler
from k2_megatron.train.session import Session

Batch = dict[str, torch.Tensor]


def check_text(config: Config) -> str:
    """Open and check every corpus before anything expensive; the fingerprint of the data order.

    Raises:
        DataError: a file is missing, truncated or does not fit the model.
    """
    request = DataRequest.of(config)
    check_corpora(request.paths, config.model.vocab_size, verify_index=False)
    return data_fingerprint(
        request.corpora,
        seq_length=request.seq_length,
        seed=request.seed,
        train_samples=request.train_samples,
        valid_fraction=request.valid_fraction,
    )


def verify_text(config: Config) -> None:
    """Also read every index file, 20 bytes a document: once a run, on one rank.

    Raises:
        DataError: an index is not the one that was written.
    """
    check_corpora(DataRequest.of(config).paths, config.model.vocab_size)


class Text:
    """This rank's micro-batches. Pipeline stages that see no tokens get empty ones."""

    def __init__(self, session: Session) -> None:
        """Open the datasets. Collective.

        Raises:
            DataError: the corpora are too small or cannot be read.
        """
        self._session = session
        config = session.config
        stages = session.model.layout.chunks(session.topology.pp.rank)
        self._reads = any(s.embedding or s.loss or s.mtp_layers for s in stages)
        request = DataRequest.of(config)
        self._train, self._valid = build_datasets(
            request.corpora,
            seq_length=request.seq_length,
            seed=request.seed,
            train_samples=request.train_samples,
            valid_samples=request.valid_samples,
            valid_fraction=request.valid_fraction,
            cache_folder=config.data.cache_folder,
            is_built_on_rank=self._reads,
        )

    def train(self, first_step: int) -> Iterator[list[Batch]]:
        """The global batches of steps `first_step`, `first_step` + 1, ...: micro-batches [b, s]."""
        return self._global_batches(self._train, first_step - 1)

    def valid(self) -> Iterator[list[Batch]]:
        """The global batches of one validation, the same each time."""
        batches = self._global_batches(self._valid, 0)
        return islice(batches, self._session.config.logging.valid_steps)

    def _global_batches(
        self, samples: TokenSamples | None, consumed_steps: int
    ) -> Iterator[list[Batch]]:
        session = self._session
        num_microbatches = session.sizes.num_microbatches
        if not self._reads:
            while True:
                yield [{}] * num_microbatches
        assert samples is not None
        schedule = session.config.schedule
        sampler = MicroBatchSampler(
            num_samples=len(samples),
            consumed_samples=consumed_steps * schedule.global_batch_size,
            micro_batch_size=schedule.micro_batch_size,
            global_batch_size=schedule.global_batch_size,
            data_parallel_rank=session.topology.dp.rank,
            data_parallel_size=session.topology.dp.size,
        )
        batches = BatchIterator(
            samples,
            sampler,
            num_workers=session.config.data.num_workers,
            pin_memory=session.platform.pins_memory,
        )
        while micro_batches := list(islice(batches, num_microbatches)):
            yield micro_batches
