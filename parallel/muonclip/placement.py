# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Who orthogonalises what: integers only, no torch, the same result on every rank.

A matrix that lies whole in one rank's shard, and nowhere else, stays there. Every other one is cut,
by a shard boundary or by tensor parallelism, or held in copies by tensor ranks; it gets one owner,
which gathers it, runs Newton-Schulz once and sends the parts of the result to all holders. Owners
are chosen so that the longest queue of Newton-Schulz work is short.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from k2_megatron.parallel.muonclip.fragments import Fragment
from k2_megatron.parallel.muonclip.rules import LogicalMatrix
from k2_megatron.parallel.rectangles import area


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What one rank of the stage holds, as the others need to know it.

    Attributes:
        tensor_rank, expert_tensor_rank: its place on the axes that cut or copy matrices.
        fixed_cost: Newton-Schulz work of the matrices that stay on it.
        fixed_matrices: their number.
        cut: fragments of all other matrices, in the rank's own order.
    """

    tensor_rank: int
    expert_tensor_rank: int
    fixed_cost: float
    fixed_matrices: int
    cut: tuple[Fragment, ...]


@dataclass(frozen=True, kw_only=True)
class CutMatrix:
    """One travelling matrix.

    Attributes:
        matrix: the logical matrix.
        owner: the rank that orthogonalises it.
        sources: (rank, index into that rank's `Holding.cut`) of parts that tile it, each once.
        holders: the same of all parts, copies included: where the result goes.
        over_tensor: tensor parallelism cuts or copies it, so that some of it would travel without
            any sharding over data parallelism.
    """

    matrix: LogicalMatrix
    owner: int
    sources: tuple[tuple[int, int], ...]
    holders: tuple[tuple[int, int], ...]
    over_tensor: bool


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The plan of one pipeline stage.

    Attributes:
        rounds: cut matrices in the order of communication; one exchange each way a round.
        loads: Newton-Schulz work by rank.
        num_matrices: logical matrices of the stage, each orthogonalised once.
        data_elements, tensor_elements: elements that travel in a step, there and back, over all
            ranks; apart by `CutMatrix.over_tensor`.
        cut_elements: elements of the matrices that are cut by shards alone.
    """

    rounds: tuple[tuple[CutMatrix, ...], ...]
    loads: tuple[float, ...]
    num_matrices: int
    data_elements: int
    tensor_elements: int
    cut_elements: int

    @property
    def balance(self) -> float:
        """Longest queue of Newton-Schulz work over the mean of all ranks; 1 is even."""
        mean = sum(self.loads) / len(self.loads)
        return max(self.loads) / mean if mean else 1.0


@dataclass
class _Parts:
    holders: list[tuple[int, int]] = field(default_factory=list)
    places: dict[object, list[tuple[int, int]]] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    tensor_ranks: set[int] = field(default_factory=set)
    covered: int = 0

    def sources(self, owner: int) -> tuple[tuple[int, int], ...]:
        """Of equal copies the owner's, else the first."""
        return tuple(
            next((place for place in copies if place[0] == owner), copies[0])
            for copies in self.places.values()
        )


def newton_schulz_cost(matrix: LogicalMatrix) -> float:
    """Multiplications of one iteration of the plain form: X Xt, A A and (b A + c A A) X."""
    short, long = sorted((matrix.rows, matrix.cols))
    return 2.0 * short * short * long + float(short) ** 3


def place(
    holdings: Sequence[Holding],
    matrices: Mapping[str, LogicalMatrix],
    *,
    round_elements: int,
) -> Placement:
    """Choose owners and rounds.

    Args:
        holdings: of every rank of the stage, in rank order.
        matrices: logical matrices by name.
        round_elements: an owner gathers no more than this in one round, unless one matrix
            is larger.

    Raises:
        AssertionError: the parts of a matrix do not tile it; a defect of the geometry table.
    """
    parts = _collect(holdings, matrices)
    loads = [holding.fixed_cost for holding in holdings]
    cut = []
    for name in sorted(parts, key=lambda name: (-newton_schulz_cost(matrices[name]), name)):
        matrix, part = matrices[name], parts[name]
        cost = newton_schulz_cost(matrix)
        # Of the ranks on which it makes no queue longer than it must be, the one that holds most
        # of it, so that least travels.
        longest = max(max(loads), min(loads) + cost)
        able = [rank for rank, load in enumerate(loads) if load + cost <= longest]
        owner = min(able, key=lambda rank: (-part.held[rank], loads[rank], rank))
        loads[owner] += cost
        cut.append(
            CutMatrix(
                matrix=matrix,
                owner=owner,
                sources=part.sources(owner),
                holders=tuple(part.holders),
                over_tensor=len(part.tensor_ranks) > 1,
            )
        )
    travel = {True: 0, False: 0}
    for one in cut:
        for rank, index in (*one.sources, *one.holders):
            travel[one.over_tensor] += holdings[rank].cut[index].size if rank != one.owner else 0
    return Placement(
        rounds=_rounds(cut, round_elements),
        loads=tuple(loads),
        num_matrices=len(cut) + sum(holding.fixed_matrices for holding in holdings),
        data_elements=travel[False],
        tensor_elements=travel[True],
        cut_elements=sum(one.matrix.rows * one.matrix.cols for one in cut if not one.over_tensor),
    )


def _collect(
    holdings: Sequence[Holding], matrices: Mapping[str, LogicalMatrix]
) -> dict[str, _Parts]:
    """All parts by matrix; with all copies of each."""
    found: dict[str, _Parts] = defaultdict(_Parts)
    for rank, holding in enumerate(holdings):
        for index, fragment in enumerate(holding.cut):
            part = found[fragment.matrix]
            part.holders.append((rank, index))
            part.held[rank] += fragment.size
            is_expert = matrices[fragment.matrix].kind == "experts"
            part.tensor_ranks.add(holding.expert_tensor_rank if is_expert else holding.tensor_rank)
            copies = part.places.setdefault(fragment.rectangles, [])
            copies.append((rank, index))
            if len(copies) > 1:
                continue
            part.covered += sum(area(rectangle) for rectangle in fragment.rectangles)
    for name, part in found.items():
        size = matrices[name].rows * matrices[name].cols
        assert part.covered == size, f"parts of {name} have {part.covered} of {size} elements"
    return found


def _rounds(cut: Sequence[CutMatrix], round_elements: int) -> tuple[tuple[CutMatrix, ...], ...]:
    """Cut every owner's queue, sorted by shape, into runs; run k of all owners is round k."""
    queues: dict[int, list[CutMatrix]] = defaultdict(list)
    for one in cut:
        queues[one.owner].append(one)
    rounds: list[list[CutMatrix]] = []
    for queue in queues.values():
        queue.sort(key=lambda one: (one.matrix.rows, one.matrix.cols, one.matrix.name))
        index, filled = 0, 0
        for one in queue:
            size = one.matrix.rows * one.matrix.cols
            if filled and filled + size > round_elements:
                index, filled = index + 1, 0
            filled += size
            while len(rounds) <= index:
                rounds.append([])
            rounds[index].append(one)
    return tuple(tuple(sorted(chosen, key=lambda one: one.matrix.name)) for chosen in rounds)
