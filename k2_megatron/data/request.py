# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks of the data: the arguments that every function of this room takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from k2_megatron.config.config import Config
from k2_megatron.config.phases import Phase, phases_of
from k2_megatron.data.order import data_fingerprint


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Corpora, split and number of samples of consecutive phases that read one row of samples.

    Attributes:
        phases: of one sequence length and the same corpora.
        corpora: (prefix, weight) pairs.
        train_samples: samples of all these phases.
        valid_samples: samples of the largest validation in them.
        rows_before: (seq_length, train_samples) of the rows of the same corpora before this one;
            None where no other row reads them.
    """

    phases: tuple[Phase, ...]
    corpora: tuple[tuple[str, float], ...]
    seq_length: int
    seed: int
    train_samples: int
    valid_samples: int
    valid_fraction: float
    rows_before: tuple[tuple[int, int], ...] | None

    @property
    def paths(self) -> list[str]:
        """The prefixes of the corpora."""
        return [path for path, _ in self.corpora]

    @property
    def first_step(self) -> int:
        """The first step that reads the row."""
        return self.phases[0].first_step

    @property
    def last_step(self) -> int:
        """The last one."""
        return self.phases[-1].last_step

    @property
    def order(self) -> Mapping[str, Any]:
        """What decides the order of the training samples, as arguments."""
        return {
            "corpora": self.corpora,
            "seq_length": self.seq_length,
            "seed": self.seed,
            "train_samples": self.train_samples,
            "valid_fraction": self.valid_fraction,
            "rows_before": self.rows_before,
        }


@dataclass(frozen=True)
class DataOrder:
    """Fingerprints of the order of the training samples, one for each row."""

    rows: tuple[tuple[int, str], ...]
    """(last step, fingerprint) of each row."""

    def at(self, step: int) -> str:
        """The fingerprint of all that is in order up to a step: the rows that it has begun."""
        begun = [self.rows[0][1]]
        begun += [
            mark
            for (end, _), (_, mark) in zip(self.rows, self.rows[1:], strict=False)
            if end < step
        ]
        if len(begun) == 1:
            return begun[0]
        return hashlib.sha256(" ".join(begun).encode()).hexdigest()


def requests_of(config: Config) -> tuple[DataRequest, ...]:
    """The rows that a run reads, one after the other."""
    groups = [
        tuple(group)
        for _, group in groupby(
            phases_of(config), key=lambda phase: (phase.text, phase.config.schedule.seq_length)
        )
    ]
    return tuple(_request(group, groups) for group in groups)


def data_order(requests: Sequence[DataRequest]) -> DataOrder:
    """Fingerprint every row.

    Raises:
        DataError: a corpus is missing, damaged or too small.
    """
    return DataOrder(tuple((one.last_step, data_fingerprint(**one.order)) for one in requests))


def _request(group: tuple[Phase, ...], groups: Sequence[tuple[Phase, ...]]) -> DataRequest:
    config = group[0].config
    rows = [
        (other[0].config.schedule.seq_length, _num_samples(other))
        for other in groups
        if other[0].text == group[0].text and other[0].index <= group[0].index
    ]
    is_shared = sum(other[0].text == group[0].text for other in groups) > 1
    largest = max(phase.config.schedule.global_batch_size for phase in group)
    return DataRequest(
        phases=group,
        corpora=tuple((corpus.path, corpus.weight) for corpus in config.data.corpora),
        seq_length=config.schedule.seq_length,
        seed=config.run.seed,
        train_samples=_num_samples(group),
        valid_samples=config.logging.valid_steps * largest,
        valid_fraction=config.data.valid_fraction,
        rows_before=tuple(rows[:-1]) if is_shared else None,
    )


def _num_samples(group: tuple[Phase, ...]) -> int:
    return sum(phase.num_steps * phase.config.schedule.global_batch_size for phase in group)
