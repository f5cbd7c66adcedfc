# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What travels together, and in which order it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, UntypedStorage

from k2_megatron.offload.pool import Block
from k2_megatron.offload.streams import Pair, Streams

# A copy takes the host more time than the copy engine needs for a small tensor, so these are sent
# together; a large one goes at once, with those in front of it.
SEND_BYTES = 64 * 2**20

_Item = tuple[UntypedStorage, int, Tensor]


class Load:
    """The storages of a pack or of a layer under way.

    They come back in parts, what backward reads first in front, so that it waits for what it reads
    next and for no more. Each storage is held until the computation waits for it to be back: a copy
    may still write to one that nobody saved.

    Args:
        block: its place on the host.
        streams: of the rank's device.

    Attributes:
        block: the same.
        nbytes: of all that it has taken.
        is_away: the device's copies were given up.
    """

    def __init__(self, block: Block, streams: Streams) -> None:
        self.block = block
        self.nbytes = 0
        self.is_away = False
        self._streams = streams
        self._known: set[int] = set()
        # In the order of forward; each is emptied when it is read.
        self._parts: list[list[_Item]] = [[]]
        self._growing = -1  # which part: the last one, or one read behind it
        self._unsent: list[Pair] = []
        self._unsent_bytes = 0
        self._made_on: Any = None  # where the unsent was computed
        self._sent: Any = None  # mark behind the last copy to the host
        # Of each part, the mark behind its copy back; empty while nothing has to be waited for.
        self._arrivals: list[Any] = []

    def take(self, storage: UntypedStorage) -> int:
        """Let a storage travel, unless it does so already.

        Returns:
            Bytes for which the block has no room.
        """
        nbytes = storage.nbytes()
        if nbytes == 0 or storage._cdata in self._known:
            return 0
        place = self.block.room(nbytes)
        if place is None:
            return nbytes
        self._known.add(storage._cdata)
        self._parts[self._growing].append((storage, nbytes, place))
        self.nbytes += nbytes
        here = self._streams.here()
        if here != self._made_on:
            self.send()
        self._made_on = here
        self._unsent.append((storage, place))
        self._unsent_bytes += nbytes
        if self._unsent_bytes >= SEND_BYTES:
            self.send()
        return 0

    def send(self) -> None:
        """Queue the copies to the host that are not queued yet."""
        if not self._unsent:
            return
        for storage, place in self._unsent:
            _check(storage, place.numel())
        self._sent = self._streams.send(self._unsent, self._made_on, self.block.free_after)
        self._unsent, self._unsent_bytes = [], 0

    def begin_part(self, tensor: Tensor) -> None:
        """What is taken from now on is read before what was taken earlier.

        Args:
            tensor: when its gradient is there, what was taken earlier is read next.
        """
        self.send()
        if not self._parts[-1] or not tensor.requires_grad:
            return
        hook = partial(self._on_gradient, len(self._parts) - 1)
        tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        self._parts.append([])

    @contextmanager
    def read_later(self, until: Tensor) -> Iterator[None]:
        """What is taken inside is read behind all else that its part has and will have.

        Args:
            until: when its gradient is there, what is taken inside is read next.
        """
        if not until.requires_grad:
            yield
            return
        index = len(self._parts) - 1
        self._parts.insert(index, [])
        until.register_hook(partial(self._on_gradient, index))  # type: ignore[no-untyped-call]
        self._growing = index
        try:
            yield
        finally:
            self._growing = -1

    def leave(self) -> None:
        """Give up the device's copies once they are on the host."""
        if self.nbytes:
            self._streams.wait(self._sent, "out")
            self.is_away = True
        for storage, nbytes, _ in chain(*self._parts):
            _check(storage, nbytes)
            self._streams.empty(storage)

    def come(self) -> None:
        """Make room on the device and queue the copies back, what is read first in front."""
        for storage, nbytes, _ in chain(*self._parts):
            self._streams.allocate(storage, nbytes)
        if self.nbytes:
            marks = [
                self._streams.fetch([(storage, place) for storage, _, place in part])
                for part in reversed(self._parts)
            ]
            self._arrivals = marks[::-1]

    @property
    def last_arrival(self) -> Any:
        """The mark behind its last copy back; None before `come`, or where nothing travelled."""
        # What is first in forward comes back last.
        return self._arrivals[0] if self._arrivals else None

    def read_first(self) -> None:
        """Backward may read what it reads first."""
        if self._arrivals:
            self._read(-1)

    def read_all(self) -> None:
        """Backward may read everything."""
        if self._arrivals:
            self._streams.wait(self.last_arrival, "in")
        self._parts, self._arrivals = [], []

    def _on_gradient(self, index: int, gradient: Tensor) -> None:
        """Backward reads the part of this index next."""
        if self._arrivals:
            self._read(index)

    def _read(self, index: int) -> None:
        """Backward may read a part; whoever saved its tensors lets go when they are read."""
        self._streams.wait(self._arrivals[index], "in")
        self._parts[index] = []


def _check(storage: UntypedStorage, nbytes: int) -> None:
    assert storage.nbytes() == nbytes, "somebody else emptied what travels"
