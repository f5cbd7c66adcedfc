# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizer state that is in host memory and passes through the device once a step.

The tensors are allocated once, in one piece of page-locked memory. A *sweep* visits them piece by
piece, always in the same order: while one piece is worked on, the next ones are on their way in and
the last ones on their way out, through a fixed number of buffers on the device. The first sweep
does not know its order yet and fetches each piece as it is asked for.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from k2_megatron.offload import state_streams as streams_module
from k2_megatron.offload.sizes import (
    NUM_STATE_BUFFERS,
    aligned,
    state_buffer_bytes,
    state_room_bytes,
)
from k2_megatron.offload.state_streams import Pairs

Parts = list[Tensor]


@dataclass
class _Sweep:
    """One sweep.

    Attributes:
        order: parts on the host that are visited together, in order.
        is_known: `order` is that of an earlier sweep.
        buffers: uint8 [number, bytes] on the device.
        visited, fetched: how many of `order`.
        taken: buffers taken so far; they are taken in turn.
        live: buffers in use.
        free_after: mark of the last copy out of each buffer.
        waiting: what was fetched and not visited yet: copies on the device, mark.
    """

    order: list[Parts]
    is_known: bool
    buffers: Tensor
    visited: int = 0
    fetched: int = 0
    taken: int = 0
    live: int = 0
    free_after: dict[int, Any] = field(default_factory=dict)
    last_out: Any = None
    waiting: deque[tuple[Parts, Any]] = field(default_factory=deque)


class HostState:
    """This rank's state in host memory.

    Args:
        tensors: bytes of each tensor that `place` will be asked for; empty where all state is on
            the device, and then everything here does nothing.
        device: where it is used.
    """

    def __init__(self, tensors: Sequence[int], device: torch.device) -> None:
        self._device = device
        self._buffer_bytes = state_buffer_bytes(tensors)
        self._streams = streams_module.state_streams(device) if tensors else None
        self._memory = torch.empty(0, dtype=torch.uint8)
        if self._streams is not None:
            self._memory = self._streams.host_memory(state_room_bytes(tensors))
            # Also where a run ends: pages must not go while they are locked.
            finalizer = weakref.finalize(self, self._streams.free, self._memory)
            finalizer.atexit = False
        self._used = self._moved = 0
        self._orders: dict[str, list[Parts]] = {}
        self._sweep: _Sweep | None = None

    @property
    def total_bytes(self) -> int:
        """Host memory of it."""
        return self._memory.numel()

    def place(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """[num_elements] zeros on the host, one of the tensors that were announced."""
        size = num_elements * dtype.itemsize
        begin, self._used = self._used, self._used + aligned(size)
        assert self._used <= self.total_bytes, "more state is placed on the host than was announced"
        return self._memory[begin : begin + size].view(dtype).zero_()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is, or is a view of, one that `place` gave."""
        storage = tensor.untyped_storage().data_ptr()
        return self.total_bytes > 0 and storage == self._memory.untyped_storage().data_ptr()

    @contextmanager
    def sweep(self, name: str) -> Iterator[None]:
        """Visits inside are of different elements, and in the order of earlier sweeps of the name.

        At its end what is computed next waits for the last copy to the host.
        """
        if self._streams is None:
            yield
            return
        assert self._sweep is None, "a sweep inside another"
        order = self._orders.get(name)
        none_yet = torch.empty(0, dtype=torch.uint8)
        sweep = _Sweep(order=order or [], is_known=order is not None, buffers=none_yet)
        self._sweep = sweep
        try:
            self._fetch_ahead(sweep)
            yield
        finally:
            self._sweep = None
            if sweep.last_out is not None:
                self._streams.wait(sweep.last_out, "out")
        assert sweep.visited == len(sweep.order), f"sweep {name} ended before its end"
        self._orders[name] = sweep.order

    def visit(self, *views: Tensor) -> Iterator[tuple[slice, slice, Parts]]:
        """Work on tensors of one shape, in place, wherever they are.

        Args:
            views: [r, n] each, with rows that are contiguous.

        Yields:
            Rows and columns, and these parts of the tensors on the device. What the caller writes
            into them is in the tensors themselves by the end of the sweep. Of tensors on the device
            everything at once, else as much as a buffer holds.
        """
        away = [self.holds(view) for view in views]
        rows, cols = views[0].shape
        if not any(away):
            yield slice(0, rows), slice(0, cols), list(views)
            return
        widest = max(view.itemsize for view in views)
        for place in _cut(rows, cols, self._buffer_bytes // widest):
            parts = [view[place] for view in views]
            sent = [part for part, is_away in zip(parts, away, strict=True) if is_away]
            copies = self._bring(sent)
            here = iter(copies)
            both = zip(parts, away, strict=True)
            yield *place, [next(here) if is_away else part for part, is_away in both]
            self._take_back(sent, copies)

    def begin_step(self) -> None:
        """Count bytes and waits from now on."""
        self._moved = 0
        if self._streams is not None:
            self._streams.forget_waits()

    @property
    def moved_bytes(self) -> int:
        """Bytes that went each way in the step."""
        return self._moved

    def waited_seconds(self) -> float:
        """How long computation stood still for copies in the step; waits for the device.

        On a CPU the time of all copies.
        """
        return 0.0 if self._streams is None else sum(self._streams.waited_seconds().values())

    def settle(self) -> None:
        """Wait until the tensors hold what was computed, before the host itself looks at them."""
        if self._streams is not None:
            self._streams.settle()

    def _bring(self, parts: Parts) -> Parts:
        """Copies on the device that the current stream may use."""
        sweep = self._sweep
        assert sweep is not None and self._streams is not None, "a visit outside of a sweep"
        if not sweep.is_known:
            sweep.order.append(parts)
        assert _same(sweep.order, sweep.visited, parts), "state is visited in another order"
        self._fetch_ahead(sweep)
        copies, mark = sweep.waiting.popleft()
        self._streams.wait(mark, "in")
        sweep.visited += 1
        return copies

    def _take_back(self, parts: Parts, copies: Parts) -> None:
        sweep = self._sweep
        assert sweep is not None and self._streams is not None
        sweep.last_out = self._streams.take(_rows(parts, copies))
        first = sweep.taken - sweep.live
        for index in range(first, first + len(parts)):
            sweep.free_after[index % NUM_STATE_BUFFERS] = sweep.last_out
        sweep.live -= len(parts)
        self._fetch_ahead(sweep)

    def _fetch_ahead(self, sweep: _Sweep) -> None:
        """Queue copies in as far as buffers are free."""
        assert self._streams is not None
        while sweep.fetched < len(sweep.order):
            parts = sweep.order[sweep.fetched]
            if sweep.live + len(parts) > NUM_STATE_BUFFERS:
                return
            if not sweep.buffers.numel():
                size = NUM_STATE_BUFFERS, self._buffer_bytes
                sweep.buffers = torch.empty(size, dtype=torch.uint8, device=self._device)
                self._streams.begin()
            numbers = [(sweep.taken + i) % NUM_STATE_BUFFERS for i in range(len(parts))]
            copies = [
                sweep.buffers[number, : part.numel() * part.itemsize].view(part.dtype)
                for number, part in zip(numbers, parts, strict=True)
            ]
            copies = [one.view(part.shape) for one, part in zip(copies, parts, strict=True)]
            # Buffers are taken and given back in turn: the last one's mark is the latest.
            mark = self._streams.bring(_rows(copies, parts), sweep.free_after.get(numbers[-1]))
            sweep.waiting.append((copies, mark))
            sweep.taken += len(parts)
            sweep.live += len(parts)
            sweep.fetched += 1
            self._moved += sum(part.numel() * part.itemsize for part in parts)


def _cut(rows: int, cols: int, most: int) -> Iterator[tuple[slice, slice]]:
    """[rows, cols] in pieces of at most `most` elements, of whole rows where one has no more."""
    if cols <= most:
        step = most // max(cols, 1) or 1
        for top in range(0, rows, step):
            yield slice(top, min(rows, top + step)), slice(0, cols)
        return
    for row in range(rows):
        for left in range(0, cols, most):
            yield slice(row, row + 1), slice(left, min(cols, left + most))


def _same(order: list[Parts], index: int, parts: Parts) -> bool:
    if index >= len(order) or len(order[index]) != len(parts):
        return False
    return all(
        (one.data_ptr(), one.shape) == (two.data_ptr(), two.shape)
        for one, two in zip(order[index], parts, strict=True)
    )


def _rows(targets: Parts, sources: Parts) -> Pairs:
    """Both as pairs of contiguous tensors."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for target, source in zip(targets, sources, strict=True):
        if target.is_contiguous() and source.is_contiguous():
            pairs.append((target, source))
        else:
            pairs += zip(target, source, strict=True)
    return pairs
