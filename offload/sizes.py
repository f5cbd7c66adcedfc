# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How much host memory a rank's packs and optimizer state need. No torch: the planner counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2_megatron.offload.slots import Itinerary, most_blocks, most_blocks_at_once

ALIGNMENT = 512
# Optimizer state that is on the host passes through buffers on the device. Together they hold the
# momenta of a batch of Newton-Schulz, so that copies go on while one is computed.
STATE_BUFFER_BYTES = 64 * 2**20
NUM_STATE_BUFFERS = 24


def aligned(nbytes: float) -> int:
    """Bytes that a tensor takes in a block."""
    return int(-(-nbytes // ALIGNMENT)) * ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """Blocks that serve the packs of some model chunks.

    Attributes:
        num_blocks: packs on the host at once.
        block_bytes: of one; a multiple of ALIGNMENT.
        chunks: whose packs they hold.
    """

    num_blocks: int
    block_bytes: int
    chunks: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        """Of all blocks."""
        return self.num_blocks * self.block_bytes


def pool_sizes(plan: Itinerary, pack_bytes: Sequence[int]) -> tuple[PoolSize, ...]:
    """Blocks for the packs of a rank.

    Chunks have most packs away at different times, so common blocks are fewer; but each must hold
    the largest pack. What takes less memory in sum is chosen.

    Args:
        plan: of the longest call of the schedule.
        pack_bytes: of each chunk.
    """
    apart = tuple(
        PoolSize(num_blocks=count, block_bytes=aligned(pack_bytes[chunk]), chunks=(chunk,))
        for chunk, count in most_blocks(plan).items()
    )
    if not apart:
        return ()
    common = PoolSize(
        num_blocks=most_blocks_at_once(plan),
        block_bytes=max(size.block_bytes for size in apart),
        chunks=tuple(chunk for size in apart for chunk in size.chunks),
    )
    return min((common,), apart, key=total_bytes)


def total_bytes(sizes: Sequence[PoolSize]) -> int:
    """Host memory of a rank."""
    return sum(size.total_bytes for size in sizes)


def within(sizes: Sequence[PoolSize], share: float) -> tuple[PoolSize, ...]:
    """The same blocks with a share of their room, between 0 and 1."""
    return tuple(
        PoolSize(
            num_blocks=size.num_blocks,
            block_bytes=int(size.block_bytes * share) // ALIGNMENT * ALIGNMENT,
            chunks=size.chunks,
        )
        for size in sizes
    )


def on_host(shards: Sequence[Sequence[int]], fraction: float) -> list[bool]:
    """Which shards have their optimizer state on the host: whole ones, spread evenly over the step.

    Args:
        shards: bytes of every tensor of each shard's state, in the order of the buffers.
        fraction: of all bytes; of the first shards together never more than this is on the host,
            and never less by more than the largest shard.
    """
    chosen, seen, placed = [], 0, 0
    for tensors in shards:
        size = sum(tensors)
        seen += size
        chosen.append(size > 0 and placed + size <= fraction * seen)
        placed += size if chosen[-1] else 0
    return chosen


def shard_tensors(elements: int, *, master: bool, momentum: int | None) -> list[int]:
    """Bytes of every tensor of a shard's state.

    Args:
        elements: of the shard.
        master: it has an fp32 copy of its weights.
        momentum: bytes of an element of Muon's; None: both of AdamW's moments, in fp32.
    """
    moments = [4, 4] if momentum is None else [momentum]
    return [width * elements for width in ([4] * master + moments)]


def tensors_on_host(shards: Sequence[Sequence[int]], chosen: Sequence[bool]) -> list[int]:
    """Bytes of the tensors of those shards that `on_host` has chosen."""
    return [size for shard, away in zip(shards, chosen, strict=True) if away for size in shard]


def state_room_bytes(tensors: Sequence[int]) -> int:
    """Host memory for tensors of optimizer state of so many bytes."""
    return sum(aligned(size) for size in tensors)


def state_buffer_bytes(tensors: Sequence[int]) -> int:
    """Size of one buffer on the device through which they pass; there are NUM_STATE_BUFFERS."""
    return min(STATE_BUFFER_BYTES, aligned(max(tensors, default=0)))
