# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a rank tells of its real gradient buffers."""

from __future__ import annotations

from typing import Any

from k2_megatron.parallel.flat_shards import flat_shards
from tests.distributed.jobs import build


def real_buffers(config_path: str, overrides: list[str]) -> dict[str, Any]:
    """Sizes of this rank's buckets, and what it owns of every parameter, in buffer order."""
    session = build(config_path, overrides)
    names = {id(parameter): entry.name for parameter, entry in session.model.parameters()}
    buffers = [
        buffer
        for chunk in session.model.chunks
        for buffer in chunk.buffers + chunk.expert_parallel_buffers
    ]
    place = session.topology
    return {
        "sizes": [bucket.grad_data.numel() for buffer in buffers for bucket in buffer.buckets],
        "owned": [
            (names[id(shard.parameter)], shard.begin, shard.end)
            for shard in flat_shards(session.model.chunks)
            if shard.begin < shard.end
        ],
        "ranks": {name: getattr(place, name).rank for name in ("tp", "pp", "dp_cp", "ep", "edp")},
        "parameters": sum(p.numel() for m in session.model.modules for p in m.parameters()),
        "state_bytes": _state_bytes(session),
        "buffer_bytes": sum(
            bucket.grad_data.nbytes + bucket.param_data.nbytes
            for buffer in buffers
            for bucket in buffer.buckets
        ),
    }


def _state_bytes(session: Any) -> int:
    """Bytes of masters and moments that MuonClip holds beside the parameters."""
    total = 0
    for shard in session.optimizer._shards:
        total += 0 if shard.parameter_view is None else shard.master.nbytes
        total += 2 * 4 * shard.master.numel() if shard.momentum is None else shard.momentum.nbytes
    return total
