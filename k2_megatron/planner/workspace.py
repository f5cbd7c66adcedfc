# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What is needed for moments only, on top of what stays: in backward and in the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.activations import ChunkActivations, head_tensors
from k2_megatron.planner.hardware import LIBRARY_BYTES
from k2_megatron.planner.job import Job
from k2_megatron.planner.newton_schulz import BATCH_ELEMENTS
from k2_megatron.planner.states import States, chunk_entries, is_matrix_of_muon, stage_kind


def pass_peak(
    job: Job,
    stages: Sequence[Stage],
    chunks: Sequence[ChunkActivations],
    held: float,
    in_flight: Sequence[int],
) -> float:
    """The most that activations and transients of forward and backward take at once, in bytes.

    Args:
        stages: this rank's chunks.
        chunks: their activations.
        held: bytes of all activations when most are held.
        in_flight: micro-batches of each chunk at that moment.
    """
    moments = [held]
    for stage, chunk, count in zip(stages, chunks, in_flight, strict=True):
        if not count:
            continue
        head = sum(chunk.device.get(tensor.name, 0.0) for tensor in head_tensors(job))
        if stage.loss:
            moments.append(held + _head_backward(job))
        moments.append(held - head + layer_forward(job, stage, chunk))
        moments.append(held - head + layer_backward(job, stage, chunk))
        if stage.embedding:
            # The last thing that backward of a micro-batch does: its layers are gone by then.
            moments.append(held - chunk.total + _embedding_backward(job))
    return max(moments) + LIBRARY_BYTES


def layer_forward(job: Job, stage: Stage, chunk: ChunkActivations) -> float:
    """Transients of one layer's forward, beyond what it keeps; 0 without experts.

    The experts' outputs lie beside what the policy empties behind them. Where tokens are exchanged
    moe_layer.py keeps them, as they came and not yet sorted by expert, until the layer ends, and
    there are the outputs as they are sent back. Four tensors of the hidden size are measured, the
    shared expert's output among them.
    """
    shape, degrees, width = job.shape, job.degrees, job.width
    if all(shape.is_dense(layer) for layer in stage.layers):
        return 0.0
    rows = job.tokens / degrees.context / degrees.tensor
    routed = rows * job.config.model.moe_router_topk
    routed *= job.imbalance if degrees.expert > 1 else 1.0
    copy = routed * shape.hidden_size * width
    exchanged = degrees.expert * degrees.expert_tensor > 1
    beside = copy + max(copy, chunk.emptied) if exchanged else chunk.emptied
    return copy + beside + 4 * rows * shape.hidden_size * width


def layer_backward(job: Job, stage: Stage, chunk: ChunkActivations) -> float:
    """Transients of one layer's backward, of the kind that needs most.

    The gradient of the layer's output stays for the residual path. The experts need the gradients
    of their outputs and of SwiGLU's output at once; with expert parallelism the former also on its
    way from the other ranks.
    """
    shape, degrees, width = job.shape, job.degrees, job.width
    rows = job.tokens / degrees.context / degrees.tensor
    hidden = rows * shape.hidden_size * width
    kinds = {shape.is_dense(layer) for layer in stage.layers}
    needs = []
    if True in kinds:
        needs.append(rows * 3 * shape.ffn_size * width)
    if False in kinds:
        routed = rows * job.config.model.moe_router_topk
        routed *= job.imbalance if degrees.expert > 1 else 1.0
        copies = 2 if degrees.expert > 1 else 1
        experts = routed * (copies * shape.hidden_size + shape.expert_size)
        if job.config.parallel.moe_token_dispatcher_type == "allgather":
            experts += rows * degrees.expert * shape.hidden_size
        needs.append(experts * width)
    return 2 * hidden + max(needs, default=0.0) + chunk.recomputed


def _head_backward(job: Job) -> float:
    """The gradient of the output layer's input, and a stand-in for that of its weights or, where
    the product does not add to the fp32 sum, that gradient."""
    shape, degrees = job.shape, job.degrees
    rows = job.tokens / degrees.context
    return job.width * shape.hidden_size * (rows + shape.vocab_size / degrees.tensor)


def _embedding_backward(job: Job) -> float:
    """The gradient of the embedding's output, in fp32 too, and a stand-in for that of the table."""
    shape, degrees = job.shape, job.degrees
    rows = job.tokens / degrees.context
    return shape.hidden_size * (
        rows * (job.width + 4) + job.width * shape.vocab_size / degrees.tensor
    )


def optimizer_peak(job: Job, pipeline_rank: int, states: States) -> float:
    """Transients of the optimizer's step, in bytes.

    Newton-Schulz takes batches of matrices of one shape [r, c], r <= c. Beside what it is given in
    the wire's dtype it holds X twice and four r x r matrices in its own (`newton_schulz_gram`).
    """
    if job.config.optimizer.type != "muonclip":
        return float(LIBRARY_BYTES)
    options = job.config.optimizer
    wire = {"fp32": 4, "bf16": 2}.get(options.muon_wire_dtype or "", job.width)
    inner = {"fp32": 4, "bf16": 2, "fp16": 2}.get(options.muon_ns_dtype or "", job.width)
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
