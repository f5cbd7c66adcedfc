# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of optimizer state that happen at random moments, as late as they may."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from k2_megatron.offload.state_streams import CudaStateStreams
from k2_megatron.offload.streams import Queue, bytes_of
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

    def wait(self, mark: Any, queue: Queue) -> None:
        assert mark[0] == queue
        if mark[0] == "out":
            self._awaited = mark
        else:
            super().wait(mark, queue)

    def settle(self) -> None:
        for queue in self._queues.values():
            while queue:
                queue.popleft()[1]()


def _copy(pairs: Pairs) -> None:
    for target, source in pairs:
        target.copy_(source)


class DelayedCudaStateStreams(CudaStateStreams):
    """A GPU's streams whose copies come up to a millisecond late."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def bring(self, pairs: Pairs, after: Any) -> Any:
        self._delay(self._in)
        return super().bring(pairs, after)

    def take(self, pairs: Pairs) -> Any:
        self._delay(self._out)
        return super().take(pairs)

    def _delay(self, stream: Any) -> None:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(self._random.randrange(1_500_000))


def delayed_state_streams(
    device: torch.device, seed: int
) -> DelayedStateStreams | DelayedCudaStateStreams:
    """Late streams of a device."""
    return DelayedCudaStateStreams(seed) if device.type == "cuda" else DelayedStateStreams(seed)
