# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where the layers go: the slowest pipeline rank as fast as can be, within a limit of memory.

A stage may have no layer: an embedding or a loss alone is then a stage of its own, and what is left
over when there are more stages than layers passes its input on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from k2_megatron.errors import ConfigError
from k2_megatron.parallel.layout import PipelineLayout, Stage
from k2_megatron.parallel.layout_request import BY_STAGES, Counts, Request

# With so many stages every move is tried, and with so many it is timed.
_FEW_STAGES, _FEW_TO_TIME = 16, 8


def most_chunks(num_layers: int, pipeline_size: int) -> int:
    """The largest VPP in which the last chunks are not all empty; 0 if PP itself is too large."""
    return 0 if pipeline_size > num_layers else max(1, -(-num_layers // pipeline_size))


def refuse_too_many_stages(num_layers: int, pipeline_size: int, virtual_size: int) -> str | None:
    """Why layers cannot be placed on so many stages, with the nearest that can; None if they can.

    Every rank needs a layer, and so does every further row of chunks.
    """
    most = most_chunks(num_layers, pipeline_size)
    if virtual_size <= most:
        return None
    fewer = num_layers if virtual_size == 1 else (num_layers - 1) // (virtual_size - 1)
    options = [f"{fewer} ranks x {virtual_size} chunks"] if fewer else []
    options += [f"{pipeline_size} ranks x {most} chunks"] if most else []
    options += [f"{pipeline_size * virtual_size // 2} ranks x 1 chunk"] * (not options)
    text = ", or ".join(options).replace("x 1 chunks", "x 1 chunk")
    return (
        f"{pipeline_size} ranks x {virtual_size} chunks are too many stages for {num_layers} "
        f"layers: every rank and every further row of chunks needs one; nearest that fit: "
        f"{text}"
    )


def place_layers(request: Request) -> PipelineLayout:
    """Cut the layers into PP x VPP contiguous stages.

    Of all cuts within the memory limit, one with the best rows, rank and stage (see `score`); of
    these the most even, and of those the one with the most layers in front. With interleaving two
    ways to weigh them are tried, and the step's time decides; with few stages the cut that is found
    is then mended by the step's time.
    Without interleaving and limit that is exact. Otherwise it is a descent, by moving layers from
    stage to stage, from the cut with the best stages and from those with the best ranks, which may
    miss the best cut by some percent (tests/parallel/test_layout_search.py counts how often).
    MTP layers stay with the loss and a decoder layer, where megatron-core wants them.

    Raises:
        ConfigError: too many stages for the layers, or no cut found within the limit.
    """
    num_layers = len(request.times.layers)
    refused = refuse_too_many_stages(num_layers, request.pipeline_size, request.virtual_size)
    if refused:
        raise ConfigError(f"pipeline: {refused}")
    counts = _best_cut(request)
    if request.virtual_size > 1 and request.step_time:
        counts = _faster(request, counts, request.step_time)
    if request.memory and any(request.memory.excess_of_ranks(counts)):
        raise ConfigError(
            f"pipeline: no placement on {request.pipeline_size} ranks x {request.virtual_size} "
            f"chunks keeps every rank within its memory"
        )
    return layout_of_counts(
        counts, pipeline_size=request.pipeline_size, num_mtp_layers=request.num_mtp_layers
    )


def _faster(
    request: Request, even: Counts, step_time: Callable[[Sequence[float]], float]
) -> Counts:
    """A cut that takes less time than one that is even, if there is one by more than a little.

    Less than half a percent of a step is not worth an uneven cut.
    """
    other = _best_cut(replace(request, weights=BY_STAGES))
    few = request.num_stages <= _FEW_TO_TIME
    if other == even and not few:
        return even
    usual = step_time(request.times.of_stages(even)) or 1.0

    def order(counts: Counts) -> tuple[object, ...]:
        score = request.score(counts)
        return score[0], round(200 * step_time(request.times.of_stages(counts)) / usual), score

    counts = min(even, other, key=order)
    return _descend(request, counts, order) if few else counts


def _best_cut(request: Request) -> Counts:
    """The cut with the best score, as far as it is found."""
    counts = _best_stages(request)
    if request.virtual_size == 1 and not request.memory:
        return counts
    starts = [counts, *_filled_ranks(request)]
    return min((_descend(request, start, request.score) for start in starts), key=request.score)


def layout_of_counts(
    counts: Sequence[int], *, pipeline_size: int, num_mtp_layers: int = 0
) -> PipelineLayout:
    """The layout with so many decoder layers in each stage."""
    ends = list(accumulate(counts, initial=0))
    last = len(counts) - 1
    return PipelineLayout(
        pipeline_size=pipeline_size,
        stages=tuple(
            Stage(
                layers=tuple(range(begin, end)),
                embedding=index == 0,
                loss=index == last,
                mtp_layers=tuple(range(num_mtp_layers)) if index == last else (),
            )
            for index, (begin, end) in enumerate(pairwise(ends))
        ),
    )


def _fewest_of_last(request: Request) -> int:
    """Layers that the last stage has at least: MTP layers copy the form of the one beside them."""
    return 1 if request.num_mtp_layers else 0


def _best_stages(request: Request) -> Counts:
    """The cut with the smallest (slowest stage, sum of squares, layers behind)."""
    total = [0, *accumulate(int(one) for one in request.units.layers)]
    num, last = len(total) - 1, request.num_stages - 1
    extra = [0] * request.num_stages
    extra[0] += int(request.units.embedding)
    extra[-1] += int(request.units.head)
    cap = _smallest_cap(total, extra, _fewest_of_last(request))
    # best[i] = (sum of squares, counts) of the first i layers in the stages so far
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for stage in range(request.num_stages):
        new: dict[int, tuple[int, list[int]]] = {}
        for begin, (squares, counts) in best.items():
            for end in range(begin, num + 1):
                part = total[end] - total[begin] + extra[stage]
                if part > cap:
                    break
                if stage == last and end < num:
                    continue
                if stage == last and end - begin < _fewest_of_last(request):
                    continue
                found = squares + part * part, [*counts, end - begin]
                old = new.get(end)
                if old is None or found[0] < old[0] or (found[0] == old[0] and found[1] > old[1]):
                    new[end] = found
        best = new
    return best[num][1]


def _smallest_cap(total: list[int], extra: list[int], fewest_of_last: int) -> int:
    """The smallest cost of the slowest stage, by bisection: filling from the front is optimal."""
    num = len(total) - 1

    def fits(cap: int) -> bool:
        done = 0
        for stage, more in enumerate(extra):
            begin, most = done, num - (0 if stage == len(extra) - 1 else fewest_of_last)
            while done < most and total[done + 1] - total[begin] + more <= cap:
                done += 1
            if total[done] - total[begin] + more > cap:
                return False
        return done == num

    low, high = 0, total[-1] + sum(extra)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _filled_ranks(request: Request) -> Iterator[Counts]:
    """Cuts that give the alike layers, one by one, to the rank with the least to do.

    Layers that differ, which stand in front, go to the first stage or the first two.
    """
    layers, size = request.units.layers, request.pipeline_size
    differing = len(layers)
    while differing and layers[differing - 1] == layers[-1]:
        differing -= 1
    for in_first in range(differing + 1):
        counts = [0] * request.num_stages
        counts[0] += in_first
        counts[min(1, request.num_stages - 1)] += differing - in_first
        counts[-1] += _fewest_of_last(request)
        open_stages = range(0 if in_first == differing else 1, request.num_stages)
        left = len(layers) - sum(counts)
        if left < 0 or not open_stages:
            continue
        loads = _Loads(request.units.of_stages(counts), size, layers[-1])
        for _ in range(left):
            counts[loads.take(open_stages)] += 1
        yield counts


class _Loads:
    """What stages and ranks have to do so far."""

    def __init__(self, stages: list[float], num_ranks: int, layer: float) -> None:
        self._stages, self._layer, self._num_ranks = stages, layer, num_ranks
        self._ranks = [sum(stages[rank::num_ranks]) for rank in range(num_ranks)]

    def take(self, among: Sequence[int]) -> int:
        """Give one more layer to a stage with little to do on the rank with the least."""
        size = self._num_ranks
        stage = min(among, key=lambda one: (self._ranks[one % size], self._stages[one], one))
        self._stages[stage] += self._layer
        self._ranks[stage % size] += self._layer
        return stage


def _descend(
    request: Request, counts: Counts, measure: Callable[[Counts], tuple[object, ...]]
) -> Counts:
    """Move one layer at a time from a stage to another, as long as the measure falls."""
    least: Any = measure(counts)
    while True:
        found: Any = min(
            ((measure(other), other) for other in _moves(request, counts)),
            default=(least, counts),
        )
        if found[0] >= least:
            return counts
        least, counts = found


def _moves(request: Request, counts: Counts) -> Iterator[Counts]:
    """Every cut that takes a layer from a slowest or overfull rank, or a slowest stage."""
    last, size = len(counts) - 1, request.pipeline_size
    stages = request.units.of_stages(counts)
    ranks = [sum(stages[rank::size]) for rank in range(size)]
    worst, slowest = max(ranks), max(stages)
    full = request.memory.excess_of_ranks(counts) if request.memory else [0.0] * size
    for source, there in enumerate(counts):
        if there <= (_fewest_of_last(request) if source == last else 0):
            continue
        rank = source % size
        is_worst = full[rank] or ranks[rank] == worst or stages[source] == slowest
        if not is_worst and len(counts) > _FEW_STAGES:
            continue
        for target in range(len(counts)):
            if target != source:
                other = list(counts)
                other[source] -= 1
                other[target] += 1
                yield other
