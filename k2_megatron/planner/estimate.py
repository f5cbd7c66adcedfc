# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: an estimate from a few measured rates, never a promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.activations import stage_tensors
from k2_megatron.planner.communication import Traffic
from k2_megatron.planner.flops import model_flops_per_token
from k2_megatron.planner.hardware import EXPOSED_WHEN_OVERLAPPED, TENSOR_PARALLEL_EFFICIENCY
from k2_megatron.planner.job import Job
from k2_megatron.planner.memory_policy import Policy, policy_of
from k2_megatron.planner.newton_schulz import StageWork
from k2_megatron.planner.parameters import attention_projections, swiglu
from k2_megatron.planner.schedule import pipeline_seconds
from k2_megatron.planner.states import States


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of one step and what they are made of.

    Attributes:
        compute_seconds: of the slowest pipeline rank: matrix products, attention, recomputation,
            and communication inside its layers that is not hidden.
        bubble_seconds: in which that rank waits for others.
        data_seconds: reduction of gradients and gathering of weights that is not hidden.
        optimizer_seconds: Newton-Schulz of the longest queue, and the element-wise update.
        bubble: bubble_seconds over the time of the pipeline.
        flops_per_token: by the formula of `flops`.
    """

    compute_seconds: float
    bubble_seconds: float
    data_seconds: float
    optimizer_seconds: float
    bubble: float
    flops_per_token: float
    tokens: int
    num_gpus: int

    @property
    def step_seconds(self) -> float:
        """Everything after each other."""
        return (
            self.compute_seconds + self.bubble_seconds + self.data_seconds + self.optimizer_seconds
        )

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens per second and GPU."""
        return self.tokens / self.step_seconds / self.num_gpus

    @property
    def flops_per_gpu(self) -> float:
        """Model FLOP/s of a GPU."""
        return self.tokens_per_gpu * self.flops_per_token


def estimate(
    job: Job,
    states: Sequence[States],
    messages: Sequence[Traffic],
    work: Sequence[StageWork],
) -> Estimate:
    """The time of one step on `job.gpu`."""
    degrees, parallel, sizes = job.degrees, job.config.parallel, job.sizes
    stages = job.layout.stages
    inside = sum(_seconds(job, one) for one in messages if one.group in ("ep", "cp"))
    layers = max(1, max(_layers(job, rank) for rank in range(degrees.pipeline)))
    per_layer = inside / sizes.num_microbatches / layers
    rate = job.gpu.flops * (TENSOR_PARALLEL_EFFICIENCY if degrees.tensor > 1 else 1.0)
    forward, backward = [], []
    for stage in stages:
        there = len(stage.layers) + len(stage.mtp_layers)
        flops = stage_forward_flops(job, stage) * job.tokens / degrees.tensor / degrees.context
        forward.append(flops / rate + there * per_layer / 2)
        again = _rebuilding(job, stage)
        backward.append(2 * flops / rate + there * per_layer / 2 + again)
    total, work_seconds = pipeline_seconds(
        degrees.pipeline,
        degrees.virtual,
        sizes.num_microbatches,
        parallel.overlap_moe_expert_parallel_comm,
        forward,
        backward,
    )
    data = sum(_seconds(job, one) for one in messages if one.group in ("dp", "edp", "stage"))
    schedule = job.config.schedule
    return Estimate(
        compute_seconds=work_seconds,
        bubble_seconds=total - work_seconds,
        data_seconds=data,
        optimizer_seconds=_optimizer(job, states, work),
        bubble=(total - work_seconds) / total,
        flops_per_token=model_flops_per_token(job.config.model, schedule.seq_length),
        tokens=schedule.global_batch_size * schedule.seq_length,
        num_gpus=job.num_gpus,
    )


def stage_forward_flops(job: Job, stage: Stage) -> float:
    """Operations of forward for one token: a third of the model formula's."""
    model, shape = job.config.model, job.shape
    head_size = model.qk_head_dim + model.qk_pos_emb_head_dim + model.v_head_dim
    core = job.config.schedule.seq_length * model.num_attention_heads * head_size
    total = 0.0
    dense = [shape.is_dense(layer) for layer in stage.layers]
    dense += [shape.is_dense(shape.num_layers - 1)] * len(stage.mtp_layers)
    for is_dense in dense:
        weights = attention_projections(model)
        if is_dense:
            weights += swiglu(model, model.ffn_hidden_size)
        else:
            weights += model.moe_router_topk * swiglu(model, model.moe_ffn_hidden_size)
            weights += swiglu(model, model.moe_shared_expert_intermediate_size)
            weights += model.num_experts * model.hidden_size
        total += 2 * weights + core
    head = 2 * model.vocab_size * model.hidden_size
    total += len(stage.mtp_layers) * 4 * model.hidden_size**2
    return total + head * (stage.loss + len(stage.mtp_layers))


def _rebuilding(job: Job, stage: Stage) -> float:
    """Seconds of a micro-batch for what is recomputed, quantised or fetched again.

    Products for MLA's up-projections; three passes over memory for the rest.
    """
    model = job.config.model
    products = moved = fetched = 0.0
    for count, tensor in stage_tensors(job, stage):
        policy = policy_of(job.policies, tensor.name)
        if policy is Policy.KEEP:
            continue
        moved += 3 * count * tensor.elements * tensor.width
        fetched += count * tensor.host_bytes(policy, job.imbalance)
        if tensor.name in ("query", "key", "value"):
            latent = model.kv_lora_rank
            if tensor.name == "query":
                latent = model.q_lora_rank or model.hidden_size
            products += 2 * count * tensor.elements * latent
    hidden = EXPOSED_WHEN_OVERLAPPED * 2 * fetched / job.gpu.host_rate
    return products / job.gpu.flops + moved / job.gpu.memory_rate + hidden


def _seconds(job: Job, one: Traffic) -> float:
    """Time of a message that is not hidden."""
    rate = 1 / (one.node_part / job.gpu.node_rate + (1 - one.node_part) / job.gpu.network_rate)
    return one.sent_bytes / rate * (EXPOSED_WHEN_OVERLAPPED if one.overlapped else 1.0)


def _optimizer(job: Job, states: Sequence[States], work: Sequence[StageWork]) -> float:
    """Longest Newton-Schulz queue, and gradient, master, moments and weights read and written."""
    products = max((one.longest for one in work), default=0.0) / job.gpu.newton_schulz_flops
    bytes_moved = max(
        4 * (one.owned.muon + one.owned.adamw) + 2 * one.optimizer_bytes for one in states
    )
    return products + bytes_moved / job.gpu.memory_rate


def _layers(job: Job, rank: int) -> int:
    chunks = job.layout.chunks(rank)
    return sum(len(stage.layers) + len(stage.mtp_layers) for stage in chunks)
