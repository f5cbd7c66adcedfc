# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers and ranges written as text, `3, 10-12`, without making a list of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

PATTERN = r"\d+(-\d+)?(, ?\d+(-\d+)?)*"
PATTERN_WORDS = "numbers and ranges such as '3, 10-12', in quotes"


@dataclass(frozen=True)
class Numbers:
    """Ranges, both ends included; one that runs backwards is empty."""

    ranges: tuple[range, ...] = ()

    @staticmethod
    def of(text: str | None) -> Numbers:
        """What a text that matches PATTERN stands for; None for nothing."""
        found = []
        for part in (text or "").replace(" ", "").split(","):
            first, _, last = part.partition("-")
            if first:
                found.append(range(int(first), int(last or first) + 1))
        return Numbers(tuple(found))

    def __contains__(self, number: int) -> bool:
        return any(number in one for one in self.ranges)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.ranges)

    def __len__(self) -> int:
        return sum(len(one) for one in self.ranges)

    @property
    def largest(self) -> int:
        """The last number of all; -1 if there is none."""
        return max((one[-1] for one in self.ranges if len(one)), default=-1)

    @property
    def smallest(self) -> int:
        """The first number of all; -1 if there is none."""
        return min((one[0] for one in self.ranges if len(one)), default=-1)

    @property
    def is_backwards(self) -> bool:
        """Whether a range ends before it begins."""
        return any(not len(one) for one in self.ranges)
