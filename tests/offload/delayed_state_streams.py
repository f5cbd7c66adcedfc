# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of optimizer state that happen at random moments, as late as they may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from k2_megatron.offload.streams import bytes_of
from torch import Tensor

from tests.offload.delayed_streams import POISON, DelayedStreams

Pairs = Sequence[tuple[Tensor, Tensor]]


class DelayedStateStreams(DelayedStreams):
    """The two queues of DelayedStreams; what a copy waits for is done just before it.

    Computation that waits for a copy out waits by no means on the host: such copies are done at the
    latest when buffers are allocated anew, which fills the old ones with NaN.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._awaited: Any = None
        self._buffers: list[Tensor] = []

    def begin(self) -> None:
        if self._awaited is not None:
            self._until(self._awaited)
        for buffer in self._buffers:
            bytes_of(buffer.untyped_storage()).fill_(POISON)
        self._buffers.clear()

    def bring(self, pairs: Pairs, after: Any) -> Any:
        self._buffers += [target for target, _ in pairs]

        def copy() -> None:
            if after is not None:
                self._until(after)
            _copy(pairs)

        return self._queue("in", copy)

    def take(self, pairs: Pairs) -> Any:
        # None is done yet: the last one of a step waits for the next step or for `settle`.
        self._count += 1
        self._queues["out"].append((self._count, lambda: _copy(pairs)))
        return "out", self._count

    def wait(self, mark: Any) -> None:
        if mark[0] == "out":
            self._awaited = mark
        else:
            super().wait(mark)

    def settle(self) -> None:
        for queue in self._queues.values():
            while queue:
                queue.popleft()[1]()


def _copy(pairs: Pairs) -> None:
    for target, source in pairs:
        target.copy_(source)
