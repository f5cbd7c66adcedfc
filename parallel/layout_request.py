# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What is to be placed on a pipeline, and which of two placements is the better one.

Costs come as numbers, so that it needs neither torch nor the planner. Stages are counted in whole
layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

# Costs are compared as integers: sums of floats in another order would decide between equals.
_PRECISION = 10**6


class Weights(NamedTuple):
    """What the slowest stages of all rows, the slowest rank and the slowest stage count."""

    rows: int
    rank: int
    stage: int


# By the replayed schedule of small pipelines the better of the two is often the best cut, and
# either alone is not (docs/pipeline.md).
BY_ROWS, BY_STAGES = Weights(4, 4, 1), Weights(0, 1, 2)

Counts = list[int]
Score = tuple[float, int, int, int, list[int]]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What each part of the model takes: time, or memory, in one unit.

    Attributes:
        layers: of each decoder layer.
        embedding: of the word embedding.
        head: of final norm, output layer, loss and all MTP layers, which stay together.
    """

    layers: tuple[float, ...]
    embedding: float = 0.0
    head: float = 0.0

    @cached_property
    def _total(self) -> list[float]:
        """Of the first 0, 1, 2, ... layers."""
        return list(accumulate(self.layers, initial=0.0))

    def of_stages(self, counts: Sequence[int]) -> list[float]:
        """The sums over stages of so many layers."""
        total, ends = self._total, accumulate(counts, initial=0)
        found = [total[end] - total[begin] for begin, end in pairwise(ends)]
        found[0] += self.embedding
        found[-1] += self.head
        return found


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a rank must hold, and may.

    Attributes:
        states: bytes between steps.
        activations: bytes of one micro-batch between forward and backward.
        in_flight: micro-batches of each stage at the rank's fullest moment.
        limits: bytes of each pipeline rank for both.
    """

    states: Needs
    activations: Needs
    in_flight: tuple[int, ...]
    limits: tuple[float, ...]

    def excess_of_ranks(self, counts: Sequence[int]) -> list[float]:
        """Bytes by which each rank exceeds its limit, 0 where it does not."""
        states = self.states.of_stages(counts)
        flying = self.activations.of_stages(counts)
        held = [
            state + one * count
            for state, one, count in zip(states, flying, self.in_flight, strict=True)
        ]
        num = len(self.limits)
        return [max(0.0, sum(held[rank::num]) - self.limits[rank]) for rank in range(num)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A pipeline and what is to be placed on it.

    Attributes:
        times: of a micro-batch, forward and backward.
        memory: None for no limit.
        step_time: of a step, from the times of its stages; chooses between the best cuts by either
            weights. None: the first weights' is taken.
        weights: of `score`.
    """

    pipeline_size: int
    virtual_size: int
    times: Needs
    num_mtp_layers: int = 0
    memory: Memory | None = None
    step_time: Callable[[Sequence[float]], float] | None = None
    weights: Weights = BY_ROWS

    @cached_property
    def units(self) -> Needs:
        """The times as whole numbers, so that sums in any order are the same."""
        times = self.times
        unit = max(*times.layers, times.embedding, times.head) / _PRECISION or 1.0
        return Needs(
            layers=tuple(float(round(one / unit)) for one in times.layers),
            embedding=float(round(times.embedding / unit)),
            head=float(round(times.head / unit)),
        )

    @property
    def num_stages(self) -> int:
        """PP x VPP."""
        return self.pipeline_size * self.virtual_size

    def score(self, counts: Counts) -> Score:
        """Less is better: bytes too many, time, evenness of ranks and stages, layers behind.

        The slowest rank takes its time with every micro-batch, and so nearly does the slowest
        stage of every row of chunks, because ranks work on one row for PP micro-batches in turn
        and wait for each other there. The slowest stage takes its time in the bubble.
        """
        size = self.pipeline_size
        stages = [int(one) for one in self.units.of_stages(counts)]
        ranks = [sum(stages[rank::size]) for rank in range(size)]
        rows = sum(max(stages[first : first + size]) for first in range(0, len(stages), size))
        excess = sum(self.memory.excess_of_ranks(counts)) if self.memory else 0.0
        even = sum(one * one for one in ranks), sum(one * one for one in stages)
        slowest = sum(
            weight * one
            for weight, one in zip(self.weights, (rows, max(ranks), max(stages)), strict=True)
        )
        return excess, slowest, *even, [-count for count in counts]
