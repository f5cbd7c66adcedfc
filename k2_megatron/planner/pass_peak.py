# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What forward and backward need for moments, on top of what they keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.activations import ChunkActivations, head_tensors
from k2_megatron.planner.communication import hidden_bytes
from k2_megatron.planner.hardware import LIBRARY_BYTES
from k2_megatron.planner.job import Job

# The router's weights are fp32, and combining the shares of expert tensor ranks takes their dtype.
_COMBINED_WIDTH = 4


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
    overlapped = job.config.parallel.overlap_moe_expert_parallel_comm
    moments = [held]
    for stage, chunk, count in zip(stages, chunks, in_flight, strict=True):
        if not count:
            continue
        head = sum(chunk.device.get(tensor.name, 0.0) for tensor in head_tensors(job))
        if stage.loss:
            moments.append(held + _head_backward(job))
        moments.append(held - head + layer_forward(job, stage, chunk))
        moments.append(held - head + layer_backward(job, stage, chunk))
        if overlapped:
            moments.append(held - head + overlapped_layers(job, stage, chunk))
        if stage.embedding:
            # The last thing that backward of a micro-batch does: its layers are gone by then.
            moments.append(held - chunk.total + _embedding_backward(job))
    return max(moments) + LIBRARY_BYTES


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Bytes of a layer's tokens on one rank, all of the hidden size.

    Attributes:
        hidden: as the layer gets them.
        routed: one for every expert they go to; as they travel between expert-parallel ranks.
        gathered: with those of the other expert tensor ranks; as experts read and write them.
        middle: of the experts' inner size.
    """

    hidden: float
    routed: float
    gathered: float
    middle: float

    @staticmethod
    def of(job: Job) -> _Tokens:
        shape, degrees = job.shape, job.degrees
        rows = job.tokens / degrees.context / degrees.tensor
        routed = rows * job.config.model.moe_router_topk
        routed *= job.imbalance if degrees.expert > 1 else 1.0
        copy = routed * shape.hidden_size * job.width
        return _Tokens(
            hidden=hidden_bytes(job),
            routed=copy,
            gathered=copy * degrees.expert_tensor,
            middle=routed * shape.expert_size * job.width,
        )


def layer_forward(job: Job, stage: Stage, chunk: ChunkActivations) -> float:
    """Transients of one layer's forward, beyond what it keeps; 0 without experts.

    moe_layer.py:392 names the tokens as they are sent and as they arrive until the layer ends. The
    experts' outputs lie beside what the policy empties behind them, and later beside themselves in
    the order in which they came, or as they are sent back. Four tensors of the hidden size are
    measured, the shared expert's output among them.
    """
    if _is_dense(job, stage):
        return 0.0
    tokens, degrees = _Tokens.of(job), job.degrees
    exchanged = degrees.expert * degrees.expert_tensor > 1
    # As sent, and as arrived: without expert parallelism where they are.
    named = tokens.routed * (exchanged + (degrees.expert > 1))
    behind = [chunk.emptied]
    if exchanged:
        behind.append(tokens.gathered)
    if degrees.expert_tensor > 1:
        behind.append(tokens.gathered + _combining(job, tokens))
    return named + tokens.gathered + max(behind) + 4 * tokens.hidden


def layer_backward(job: Job, stage: Stage, chunk: ChunkActivations) -> float:
    """Transients of one layer's backward, of the kind that needs most.

    The gradient of the layer's output stays for the residual path. The experts need the gradients
    of their outputs and of SwiGLU's output at once; with expert parallelism the former also on its
    way from the other ranks. Where the experts' input is rebuilt, its tokens are sent and arrive
    beside the former.
    """
    shape, degrees = job.shape, job.degrees
    tokens = _Tokens.of(job)
    kinds = {shape.is_dense(layer) for layer in stage.layers}
    needs = []
    if True in kinds:
        needs.append(tokens.hidden / shape.hidden_size * 3 * shape.ffn_size)
    if False in kinds:
        copies = 2 if degrees.expert > 1 else 1
        experts = copies * tokens.gathered + tokens.middle
        if job.config.parallel.moe_token_dispatcher_type == "allgather":
            experts += tokens.hidden * degrees.expert
        needs.append(experts)
        if degrees.expert > 1 and chunk.sent_again:
            needs.append(tokens.gathered + 2 * tokens.routed)
        if degrees.expert_tensor > 1:
            needs.append(_combining(job, tokens) - chunk.recomputed)
    return 2 * tokens.hidden + max(needs, default=0.0) + chunk.recomputed


def overlapped_layers(job: Job, stage: Stage, chunk: ChunkActivations) -> float:
    """Transients where a layer's forward runs with a layer's backward of another micro-batch.

    The experts of the one have gone when those of the other come, attention's part of both is
    there (model_chunk_schedule_plan.py, TransformerLayerSchedulePlan.run). The backward's experts
    are beside the forward's tokens as they are sent, and as they arrive where weight gradients
    wait for that; the forward's outputs, twice, are beside its tokens as they arrived and the
    backward's on their way back.
    """
    if _is_dense(job, stage):
        return 0.0
    tokens = _Tokens.of(job)
    waits = job.config.parallel.delay_wgrad_compute
    backward = tokens.routed * (2 if waits else 1) + layer_backward(job, stage, chunk)
    forward = 2 * tokens.routed + tokens.gathered + max(tokens.gathered, chunk.emptied)
    return chunk.attention + max(backward, forward + 4 * tokens.hidden)


def _combining(job: Job, tokens: _Tokens) -> float:
    """Expert tensor ranks' shares, summed in fp32: what goes in, and what comes out.

    Equal numbers of tokens, as without expert parallelism, are laid side by side once more
    (reduce_scatter and all_gather of lists in torch.distributed).
    """
    into = tokens.gathered / job.width * _COMBINED_WIDTH
    copies = 2 if job.degrees.expert == 1 else 1
    return copies * into + into / job.degrees.expert_tensor


def _is_dense(job: Job, stage: Stage) -> bool:
    return all(job.shape.is_dense(layer) for layer in stage.layers)


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
