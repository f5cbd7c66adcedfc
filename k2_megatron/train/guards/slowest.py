# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""When a rank has been slower than the others for long enough to be named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class SlowRank:
    """A rank whose time was `ratio` times the median's, after `reports` such reports in a row."""

    rank: int
    ratio: float
    reports: int

    def describe(self, host: str) -> str:
        """The message for the log."""
        return (
            f"rank {self.rank} on {host} is slow: its attention takes {self.ratio:.2f} times as "
            f"long as the median rank's, in {self.reports} reports in a row; all ranks wait for it"
        )


class SlowestRank:
    """Counts reports in a row with the same rank slowest, and by much."""

    def __init__(self, *, factor: float, reports: int) -> None:
        """Know no report yet."""
        self._factor, self._reports = factor, reports
        self._rank, self._count = -1, 0

    def judge(self, seconds: Mapping[int, float]) -> SlowRank | None:
        """Take the times of one report; the rank to name, each time the count is full.

        Args:
            seconds: by rank.
        """
        rank = max(seconds, key=lambda one: seconds[one])
        # The median of the others: with two ranks the slow one would raise its own yardstick.
        others = [time for one, time in seconds.items() if one != rank]
        if not others or seconds[rank] <= self._factor * median(others):
            self._rank, self._count = -1, 0
            return None
        self._count = self._count + 1 if rank == self._rank else 1
        self._rank = rank
        if self._count < self._reports:
            return None
        self._count = 0
        ratio = seconds[rank] / max(median(others), 1e-12)
        return SlowRank(rank=rank, ratio=ratio, reports=self._reports)
