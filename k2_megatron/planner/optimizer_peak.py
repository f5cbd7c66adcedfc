# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the optimizer's step needs for moments, on top of what stays."""

from __future__ import annotations

from k2_megatron.planner.hardware import LIBRARY_BYTES
from k2_megatron.planner.job import DTYPE_BYTES, Job
from k2_megatron.planner.newton_schulz import BATCH_ELEMENTS
from k2_megatron.planner.states import States, chunk_entries, is_matrix_of_muon, stage_kind


def optimizer_peak(job: Job, pipeline_rank: int, states: States) -> float:
    """Transients of the optimizer's step, in bytes.

    Newton-Schulz takes batches of matrices of one shape [r, c], r <= c. Beside what it is given in
    the wire's dtype it holds X twice and four r x r matrices in its own (`newton_schulz_gram`).
    """
    if job.config.optimizer.type != "muonclip":
        return float(LIBRARY_BYTES)
    options = job.config.optimizer
    wire = DTYPE_BYTES.get(options.muon_wire_dtype or "", job.width)
    inner = DTYPE_BYTES.get(options.muon_ns_dtype or "", job.width)
    largest = 0.0
    counts = _matrices_by_shape(job, pipeline_rank)
    travels = job.degrees.stage > 1
    for (rows, cols), count in counts.items():
        size = rows * cols
        batch = min(count, max(1, BATCH_ELEMENTS // size))
        square = 4 * min(rows, cols) / max(rows, cols)
        largest = max(largest, batch * size * (wire + inner * (2 + square)))
    if travels:
        # What is sent and what arrives, in both directions; at most what this rank holds.
        largest += 4 * wire * min(states.owned.muon, BATCH_ELEMENTS)
    return largest + LIBRARY_BYTES


def masters_to_move(job: Job, states: States) -> float:
    """Transients of the moment in which AdamW's state goes to the host, in bytes.

    megatron-core makes all fp32 copies of 16-bit weights on the device; those of MuonClip move
    shard by shard while they are made.
    """
    if job.config.optimizer.type != "adamw" or job.width != 2 or not states.host_bytes:
        return 0.0
    masters = 4 * (states.owned.muon + states.owned.adamw)
    return float(masters - states.device_bytes + LIBRARY_BYTES)


def _matrices_by_shape(job: Job, pipeline_rank: int) -> dict[tuple[int, int], int]:
    """Blocks that one rank orthogonalises together, by shape: an upper bound under sharding."""
    stages = tuple(stage_kind(job.shape, stage) for stage in job.layout.chunks(pipeline_rank))
    key = (job.shape, stages, job.degrees, job.config.optimizer, job.on_gpu)
    if key in _KNOWN:
        return _KNOWN[key]
    counts: dict[tuple[int, int], int] = {}
    for stage in stages:
        for entry in chunk_entries(job, stage):
            if not is_matrix_of_muon(job, entry):
                continue
            seen: dict[str, int] = {}
            for piece in entry.pieces:
                rows = piece.local_rows[1] - piece.local_rows[0]
                seen[piece.key] = seen.get(piece.key, 0) + rows
            for rows in seen.values():
                counts[rows, entry.shape[1]] = counts.get((rows, entry.shape[1]), 0) + 1
    ways = max(1, min(job.degrees.expert_data, job.degrees.data_context))
    _KNOWN[key] = {shape: -(-count // ways) for shape, count in counts.items()}
    return _KNOWN[key]


_KNOWN: dict[object, dict[tuple[int, int], int]] = {}
