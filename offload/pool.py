# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Host memory for what travels: allocated once, in blocks that hold one pack each.

A block's size is the plan's, so a pool never grows. A router may send a rank more tokens than the
plan has room for; what finds no room stays on the device and is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from k2_megatron.offload.sizes import PoolSize, aligned
from k2_megatron.offload.streams import Streams


class Block:
    """Room for one pack, handed out from its begin.

    Attributes:
        home: the free blocks among which it lies when it is not taken.
        free_after: what was read from it last; None: nothing.
    """

    def __init__(self, home: list[Block], memory: Tensor) -> None:
        self.home = home
        self.free_after: Any = None
        self._memory = memory
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Handed out since it was cleared."""
        return self._used

    def clear(self) -> None:
        """Forget what is in it."""
        self._used = 0

    def room(self, nbytes: int) -> Tensor | None:
        """uint8 [nbytes] of the block; None where that much is not left."""
        begin = self._used
        if begin + nbytes > self._memory.numel():
            return None
        self._used = min(begin + aligned(nbytes), self._memory.numel())
        return self._memory[begin : begin + nbytes]


class HostPool:
    """The blocks of all chunks of a rank, in one piece of host memory.

    Args:
        sizes: those of `pool_sizes`.
        streams: knows how host memory is had.

    Attributes:
        sizes: the same.
    """

    def __init__(self, sizes: Sequence[PoolSize], streams: Streams) -> None:
        self.sizes = tuple(sizes)
        self._streams = streams
        self._memory = streams.host_memory(sum(size.total_bytes for size in sizes))
        # Also where a run ends with the pool in use: pages must not go while they are locked.
        self._finalizer = weakref.finalize(self, streams.free, self._memory)
        self._finalizer.atexit = False
        self._free: dict[int, list[Block]] = {}
        self._taken: set[Block] = set()
        self._high_water = begin = 0
        for size in sizes:
            free: list[Block] = []
            self._free |= dict.fromkeys(size.chunks, free)
            for _ in range(size.num_blocks):
                end = begin + size.block_bytes
                free.append(Block(free, self._memory[begin:end]))
                begin = end

    @property
    def total_bytes(self) -> int:
        """Host memory of the pool."""
        return self._memory.numel()

    @property
    def high_water_bytes(self) -> int:
        """The most that was in use at once."""
        return self._high_water

    def take(self, chunk: int) -> Block:
        """A free block for a pack of a chunk; the plan says that there is one."""
        if not self.sizes:  # no chunk of this rank has a tensor that travels
            block = Block([], self._memory)
        else:
            assert self._free.get(chunk), f"more packs of chunk {chunk} travel than were planned"
            block = self._free[chunk].pop()
        block.clear()
        self._taken.add(block)
        return block

    def note_use(self) -> None:
        """Look how much is in use; called between slots, when blocks are as full as they get."""
        used = sum(block.used_bytes for block in self._taken)
        self._high_water = max(self._high_water, used)

    def give(self, block: Block, free_after: Any) -> None:
        """Give a block back; it may be written again once `free_after` has passed."""
        self._taken.remove(block)
        block.free_after = free_after
        block.home.append(block)

    def close(self) -> None:
        """Give the memory back."""
        assert not self._taken
        self._finalizer()
        for free in self._free.values():
            free.clear()  # blocks and lists know each other, and no collector may come for long
        self._free = {}
        self._memory = torch.empty(0, dtype=torch.uint8)

    def give_all(self) -> None:
        """Give back what is taken, after a schedule that did not come to its end."""
        for block in list(self._taken):
            self.give(block, None)
