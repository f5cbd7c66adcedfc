# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Carry the parts of cut matrices to their owners and the results back, one round at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from k2_megatron.parallel.muonclip.fragments import Fragment
from k2_megatron.parallel.muonclip.placement import CutMatrix, Holding
from k2_megatron.parallel.muonclip.rules import LogicalMatrix
from k2_megatron.parallel.rectangles import Rectangle, area

Parts = list[tuple[int, Fragment, CutMatrix]]


@dataclass
class Batch:
    """Matrices of one shape on their owner.

    Attributes:
        matrices: the logical matrices.
        values: [number of matrices, rows, columns].
    """

    matrices: list[LogicalMatrix]
    values: torch.Tensor


@dataclass
class _Side:
    """One direction of one round: what goes to and what comes from every rank of the group."""

    sends: list[Parts]
    receives: list[Parts]

    def sizes(self, lists: list[Parts]) -> list[int]:
        return [sum(fragment.size for _, fragment, _ in parts) for parts in lists]


@dataclass
class Round:
    """One exchange there and back.

    Attributes:
        there: fragments from their sources to the owners. back: results to all holders.
    """

    there: _Side
    back: _Side
    owned: list[CutMatrix] = field(default_factory=list)


class Exchange:
    """The rounds of one rank."""

    def __init__(
        self,
        rounds: Sequence[Sequence[CutMatrix]],
        holdings: Sequence[Holding],
        group: dist.ProcessGroup,
        *,
        dtype: torch.dtype,
        result_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Work out who sends what to whom.

        Args:
            rounds: of the placement.
            holdings: of every rank of `group`, in rank order.
            group: all ranks of the pipeline stage.
            dtype: of what travels to the owners.
            result_dtype: of what travels back; as wide.
            device: where the shards are.
        """
        assert dtype.itemsize == result_dtype.itemsize
        self._group, self._dtype, self._device = group, dtype, device
        self._result_dtype = result_dtype
        self._rounds = [_round(chosen, holdings, group.rank()) for chosen in rounds]

    def __len__(self) -> int:
        return len(self._rounds)

    def gather(
        self, index: int, pack: Callable[[int, torch.Tensor], None]
    ) -> Callable[[], list[Batch]]:
        """Begin to send this rank's fragments to the owners.

        Args:
            index: the round.
            pack: writes fragment i of `Holding.cut` into a flat tensor of its size.

        Returns:
            Waits, and gives the whole matrices that this rank owns in this round.
        """
        side = self._rounds[index].there

        def fill(outgoing: torch.Tensor) -> None:
            _for_each(outgoing, side.sends, lambda number, _, __, values: pack(number, values))

        finish = self._exchange(side, fill, self._dtype)
        return lambda: self._assemble(index, finish())

    def scatter(
        self, index: int, batches: Sequence[Batch]
    ) -> Callable[[], list[tuple[int, torch.Tensor]]]:
        """Begin to send the parts of results to all who hold one.

        Returns:
            Waits, and gives (index into `Holding.cut`, flat values) for this rank's fragments.
        """
        side = self._rounds[index].back
        where = _by_name(batches)

        def fill(outgoing: torch.Tensor) -> None:
            def write(_: int, fragment: Fragment, one: CutMatrix, values: torch.Tensor) -> None:
                _copy_rectangles(where[one.matrix.name], fragment.rectangles, values, out=True)

            _for_each(outgoing, side.sends, write)

        finish = self._exchange(side, fill, self._result_dtype)

        def results() -> list[tuple[int, torch.Tensor]]:
            found: list[tuple[int, torch.Tensor]] = []
            _for_each(
                finish(),
                side.receives,
                lambda number, _, __, values: found.append((number, values)),
            )
            return found

        return results

    def _exchange(
        self, side: _Side, fill: Callable[[torch.Tensor], None], dtype: torch.dtype
    ) -> Callable[[], torch.Tensor]:
        """One asynchronous all-to-all; the returned function waits for what arrives."""
        send_sizes, receive_sizes = side.sizes(side.sends), side.sizes(side.receives)
        outgoing = torch.empty(sum(send_sizes), dtype=dtype, device=self._device)
        arriving = torch.empty(sum(receive_sizes), dtype=dtype, device=self._device)
        fill(outgoing)
        work = dist.all_to_all_single(
            arriving, outgoing, receive_sizes, send_sizes, group=self._group, async_op=True
        )

        def finish(_sent_until_here: torch.Tensor = outgoing) -> torch.Tensor:
            work.wait()
            return arriving

        return finish

    def _assemble(self, index: int, arrived: torch.Tensor) -> list[Batch]:
        chosen = self._rounds[index]
        by_shape: dict[tuple[int, int], list[LogicalMatrix]] = defaultdict(list)
        for one in chosen.owned:
            by_shape[one.matrix.rows, one.matrix.cols].append(one.matrix)
        batches = [
            Batch(
                matrices=matrices,
                values=torch.empty(len(matrices), *shape, dtype=self._dtype, device=self._device),
            )
            for shape, matrices in by_shape.items()
        ]
        where = _by_name(batches)

        def write(_: int, fragment: Fragment, one: CutMatrix, values: torch.Tensor) -> None:
            _copy_rectangles(where[one.matrix.name], fragment.rectangles, values, out=False)

        _for_each(arrived, chosen.there.receives, write)
        return batches


def _round(chosen: Sequence[CutMatrix], holdings: Sequence[Holding], rank: int) -> Round:
    """This rank's part of a round; both ends of a message list its fragments in one order."""

    def side(*, there: bool) -> _Side:
        lists = _Side([[] for _ in holdings], [[] for _ in holdings])
        for one in chosen:
            for holder, index in one.sources if there else one.holders:
                part = (index, holdings[holder].cut[index], one)
                sender, receiver = (holder, one.owner) if there else (one.owner, holder)
                if sender == rank:
                    lists.sends[receiver].append(part)
                if receiver == rank:
                    lists.receives[sender].append(part)
        return lists

    owned = [one for one in chosen if one.owner == rank]
    return Round(there=side(there=True), back=side(there=False), owned=owned)


def _by_name(batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Views of the matrices of all batches, [rows, columns]."""
    return {
        matrix.name: values
        for batch in batches
        for matrix, values in zip(batch.matrices, batch.values, strict=True)
    }


def _for_each(
    flat: torch.Tensor,
    lists: Sequence[Parts],
    visit: Callable[[int, Fragment, CutMatrix, torch.Tensor], None],
) -> None:
    """Visit the fragments of a message buffer with their places in it."""
    begin = 0
    for parts in lists:
        for number, fragment, one in parts:
            visit(number, fragment, one, flat[begin : begin + fragment.size])
            begin += fragment.size


def _copy_rectangles(
    matrix: torch.Tensor, rectangles: Sequence[Rectangle], flat: torch.Tensor, *, out: bool
) -> None:
    """Between rectangles of a matrix and their elements one after the other."""
    begin = 0
    for rectangle in rectangles:
        (top, bottom), (left, right) = rectangle
        inside = matrix[top:bottom, left:right]
        part = flat[begin : begin + area(rectangle)].view(bottom - top, right - left)
        if out:
            part.copy_(inside)
        else:
            inside.copy_(part)
        begin += area(rectangle)
