# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks of the data: the arguments that every function of this room takes."""

from __future__ import annotations

from dataclasses import dataclass

from k2_megatron.config.config import Config


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Corpora, split and number of samples of a run.

    Attributes:
        corpora: (prefix, weight) pairs.
        train_samples: samples of the whole schedule.
        valid_samples: samples of one validation.
    """

    corpora: tuple[tuple[str, float], ...]
    seq_length: int
    seed: int
    train_samples: int
    valid_samples: int
    valid_fraction: float

    @property
    def paths(self) -> list[str]:
        """The prefixes of the corpora."""
        return [path for path, _ in self.corpora]

    @staticmethod
    def of(config: Config) -> DataRequest:
        """The request of a configuration."""
        batch = config.schedule.global_batch_size
        return DataRequest(
            corpora=tuple((corpus.path, corpus.weight) for corpus in config.data.corpora),
            seq_length=config.schedule.seq_length,
            seed=config.run.seed,
            train_samples=config.schedule.train_steps * batch,
            valid_samples=config.logging.valid_steps * batch,
            valid_fraction=config.data.valid_fraction,
        )
