# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What each GPU sends in a step, by group and purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2_megatron.planner.hardware import EXPOSED_WHEN_OVERLAPPED
from k2_megatron.planner.job import Degrees, Job
from k2_megatron.planner.newton_schulz import StageWork
from k2_megatron.planner.states import States


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One kind of message.

    Attributes:
        group: axis of the mesh over which it goes.
        size: ranks of the group.
        purpose: what it is for.
        sent_bytes: by the GPU that sends most, in one optimizer step.
        node_part: share of it that stays within a node.
        overlapped: it runs under computation.
    """

    group: str
    size: int
    purpose: str
    sent_bytes: float
    node_part: float
    overlapped: bool


def traffic(job: Job, states: Sequence[States], muon: Sequence[StageWork]) -> tuple[Traffic, ...]:
    """All messages of a step but control ones.

    Rings send (n - 1) / n of a buffer of n ranks; the all-to-all of experts sends what is routed
    to other ranks, (n - 1) / n of all tokens with even loads.
    """
    return tuple(
        one for one in (*_data(job, states), *_model(job), *_muon(job, muon)) if one.sent_bytes
    )


def _others(size: int) -> float:
    return (size - 1) / size


def _data(job: Job, states: Sequence[States]) -> list[Traffic]:
    degrees, parallel = job.degrees, job.config.parallel
    found = []
    for group, size, elements in (
        ("dp", degrees.data_context, max(one.dense_elements for one in states)),
        ("edp", degrees.expert_data, max(one.expert_elements for one in states)),
    ):
        part = _node_part(job, group)
        for purpose, width, overlapped in (
            ("reduce-scatter of fp32 gradients", 4, parallel.overlap_grad_reduce),
            ("all-gather of weights", job.width, parallel.overlap_param_gather),
        ):
            sent = width * elements * _others(size)
            found.append(
                Traffic(
                    group=group,
                    size=size,
                    purpose=purpose,
                    sent_bytes=sent,
                    node_part=part,
                    overlapped=overlapped,
                )
            )
    return found


def _model(job: Job) -> list[Traffic]:
    """What the layers of one rank send, over all micro-batches."""
    degrees, shape = job.degrees, job.shape
    count = job.sizes.num_microbatches
    rows = job.tokens / degrees.context / degrees.tensor
    layers = max(
        sum(len(stage.layers) + len(stage.mtp_layers) for stage in job.layout.chunks(rank))
        for rank in range(degrees.pipeline)
    )
    moe = _most_moe_layers(job)
    hidden = hidden_bytes(job)
    purpose = "tokens to their experts and back"
    if job.config.parallel.moe_token_dispatcher_type == "allgather":
        purpose = "all tokens to all experts and back"
    expert = count * moe * expert_bytes_per_layer(job)
    hops = degrees.virtual if degrees.pipeline > 1 else 0
    # Forward gathers the latents and scatters the output's sums; backward gathers the inputs again
    # and mirrors both.
    latents = (shape.q_lora_rank or shape.hidden_size) + shape.kv_lora_rank + shape.qk_rope_dim
    feed = 5 * shape.hidden_size
    per_row = 3 * latents + 2 * shape.hidden_size + feed
    tensor = count * layers * rows * per_row * job.width * (degrees.tensor - 1)
    context = count * layers * context_bytes_per_layer(job)
    overlap = job.config.parallel.overlap_moe_expert_parallel_comm
    return [
        Traffic(
            group="ep",
            size=degrees.expert,
            purpose=purpose,
            sent_bytes=expert,
            node_part=_node_part(job, "ep"),
            overlapped=overlap,
        ),
        Traffic(
            group="pp",
            size=degrees.pipeline,
            purpose="activations and their gradients",
            sent_bytes=2 * count * hops * hidden,
            node_part=_node_part(job, "pp"),
            overlapped=degrees.virtual > 1,
        ),
        Traffic(
            group="tp",
            size=degrees.tensor,
            purpose="sequence shards",
            sent_bytes=tensor,
            node_part=_node_part(job, "tp"),
            overlapped=False,
        ),
        Traffic(
            group="cp",
            size=degrees.context,
            purpose="keys, values and their gradients",
            sent_bytes=context,
            node_part=_node_part(job, "cp"),
            overlapped=True,
        ),
    ]


def hidden_bytes(job: Job) -> float:
    """The hidden states of one micro-batch on one rank: what a pipeline stage sends to the next."""
    rows = job.tokens / job.degrees.context / job.degrees.tensor
    return rows * job.shape.hidden_size * job.width


def expert_bytes_per_layer(job: Job) -> float:
    """What a rank sends for one MoE layer and micro-batch: to the experts and back, twice."""
    degrees, hidden = job.degrees, hidden_bytes(job)
    once = job.config.model.moe_router_topk * hidden * degrees.expert_tensor
    if job.config.parallel.moe_token_dispatcher_type == "allgather":
        once = degrees.expert * hidden
    return 4 * once * _others(degrees.expert)


def context_bytes_per_layer(job: Job) -> float:
    """Keys, values and their gradients that a rank sends for one layer and micro-batch."""
    degrees, shape = job.degrees, job.shape
    heads = shape.num_heads * (shape.qk_head_dim + shape.qk_rope_dim + shape.v_head_dim)
    rows = job.tokens / degrees.context / degrees.tensor
    return 3 * rows * heads * job.width * (degrees.context - 1)


def message_seconds(job: Job, group: str, size: float, *, overlapped: bool = False) -> float:
    """Time of `size` bytes that one rank sends in a group; of overlapped ones what shows."""
    part, gpu = _node_part(job, group), job.gpu
    rate = 1 / (part / gpu.node_rate + (1 - part) / gpu.network_rate)
    return size / rate * (EXPOSED_WHEN_OVERLAPPED if overlapped else 1.0)


def _muon(job: Job, work: Sequence[StageWork]) -> list[Traffic]:
    if not work:
        return []
    most = max(one.wire_bytes for one in work) / job.degrees.stage
    return [
        Traffic(
            group="stage",
            size=job.degrees.stage,
            purpose="matrices to their Newton-Schulz owner and back",
            sent_bytes=most,
            node_part=_node_part(job, "stage"),
            overlapped=True,
        )
    ]


def _most_moe_layers(job: Job) -> int:
    shape = job.shape
    last_is_moe = not shape.is_dense(shape.num_layers - 1)
    return max(
        sum(
            sum(not shape.is_dense(layer) for layer in stage.layers)
            + last_is_moe * len(stage.mtp_layers)
            for stage in job.layout.chunks(rank)
        )
        for rank in range(job.degrees.pipeline)
    )


def _node_part(job: Job, group: str) -> float:
    """Share of a group's messages between GPUs of one node: neighbours of the mesh share nodes.

    The mesh goes tensor, context, (expert,) data, pipeline from inside out; an all-to-all of n
    ranks, k of them on this node, stays with (k - 1) / (n - 1) of what it sends. A ring leaves the
    node once for every k neighbours, which the hierarchical collectives of NCCL make the same.
    """
    degrees = job.degrees
    stride, size = _place_of(degrees, group)
    here = max(1, min(size, job.gpus_per_node // stride))
    return (here - 1) / (size - 1) if size > 1 else 1.0


def _place_of(degrees: Degrees, group: str) -> tuple[int, int]:
    """(distance of neighbours in ranks, size) of a group."""
    return {
        "tp": (1, degrees.tensor),
        "cp": (degrees.tensor, degrees.context),
        "dp": (degrees.tensor, degrees.data_context),
        "ep": (degrees.expert_tensor, degrees.expert),
        "edp": (degrees.expert_tensor * degrees.expert, degrees.expert_data),
        "pp": (degrees.stage, degrees.pipeline),
        "stage": (1, degrees.stage),
    }[group]
