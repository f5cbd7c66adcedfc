# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Streams whose copies happen at random moments, as late as they may, and leave poison behind."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from k2_megatron.offload.streams import CudaStreams, Pair, PlainStreams, Queue, bytes_of

POISON = 0xFF  # a NaN in every format of floating-point numbers


class DelayedStreams(PlainStreams):
    """Two queues of copies; at each call a random number of them is done.

    A storage that is given up is not emptied but filled with NaN, and so is one whose copy back
    has not come: whoever reads it too early computes NaN, where an empty one would crash.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._queues: dict[str, deque[tuple[int, Callable[[], None]]]] = {
            "out": deque(),
            "in": deque(),
        }
        self._count = 0
        self.poisoned = 0
        self.fetches = 0

    def host_memory(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def send(self, pairs: Sequence[Pair], behind: Any, after: Any) -> Any:
        if after is not None:
            self._until(after)  # a real stream waits for itself; the order is the same

        def copy() -> None:
            for storage, place in pairs:
                place.copy_(bytes_of(storage))

        return self._queue("out", copy)

    def fetch(self, pairs: Sequence[Pair]) -> Any:
        def copy() -> None:
            for storage, place in pairs:
                bytes_of(storage).copy_(place)

        self.fetches += 1
        return self._queue("in", copy)

    def wait(self, mark: Any, queue: Queue) -> None:
        assert mark[0] == queue
        self._until(mark)
        self._do_some()

    def empty(self, storage: UntypedStorage) -> None:
        bytes_of(storage).fill_(POISON)
        self.poisoned += storage.nbytes()
        self._do_some()

    def allocate(self, storage: UntypedStorage, nbytes: int) -> None:
        assert storage.nbytes() == nbytes

    def _queue(self, name: str, copy: Callable[[], Any]) -> tuple[str, int]:
        self._count += 1
        self._queues[name].append((self._count, copy))
        self._do_some()
        return name, self._count

    def _do_some(self) -> None:
        for queue in self._queues.values():
            while queue and self._random.random() < 0.2:
                queue.popleft()[1]()

    def _until(self, mark: tuple[str, int]) -> None:
        queue = self._queues[mark[0]]
        while queue and queue[0][0] <= mark[1]:
            queue.popleft()[1]()


class DelayedCudaStreams(CudaStreams):
    """A GPU's streams whose copies come up to a millisecond late, with the same poison.

    The computation's stream fills what is given up, and memory whose copy back is only queued; so
    whoever does not wait for a copy sends or reads NaN.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def host_memory(self, nbytes: int) -> Tensor:
        return super().host_memory(nbytes).fill_(POISON)

    def send(self, pairs: Sequence[Pair], behind: Any, after: Any) -> Any:
        self._delay(self._out)
        return super().send(pairs, behind, after)

    def fetch(self, pairs: Sequence[Pair]) -> Any:
        self._delay(self._in)
        return super().fetch(pairs)

    def empty(self, storage: UntypedStorage) -> None:
        bytes_of(storage).fill_(POISON)
        super().empty(storage)

    def allocate(self, storage: UntypedStorage, nbytes: int) -> None:
        super().allocate(storage, nbytes)
        bytes_of(storage).fill_(POISON)

    def _delay(self, stream: Any) -> None:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(self._random.randrange(1_500_000))


def delayed_streams(device: torch.device, seed: int) -> DelayedStreams | DelayedCudaStreams:
    """Late streams of a device."""
    return DelayedCudaStreams(seed) if device.type == "cuda" else DelayedStreams(seed)
