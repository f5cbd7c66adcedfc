# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How long one stage takes for one micro-batch, and what of it runs beside something else.

The one source of costs for the placement of layers, the estimate of a step and the picture of the
schedule. It knows a stage by what it holds, not by where it lies: the layout follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from k2_megatron.memory.policy import Policy
from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.activations import stage_tensors
from k2_megatron.planner.communication import (
    context_bytes_per_layer,
    expert_bytes_per_layer,
    hidden_bytes,
    message_seconds,
)
from k2_megatron.planner.hardware import EXPOSED_WHEN_OVERLAPPED, TENSOR_PARALLEL_EFFICIENCY
from k2_megatron.planner.job import Job
from k2_megatron.planner.parameters import attention_projections, swiglu


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Seconds of one micro-batch in one stage.

    Attributes:
        attention: the part of forward's computation that is attention; twice that in backward.
        forward_compute: products, attention, and context-parallel communication that shows.
        activation_gradient: the part of backward that the stage before waits for, recomputation
            included.
        weight_gradient: the rest of backward.
        all_to_all: expert communication of forward; backward's is the same.
        exposed: share of it that shows.
        send: one hop of activations, or of their gradients, to the next rank.
        offload: activations to host memory; their way back is the same.
    """

    attention: float
    forward_compute: float
    activation_gradient: float
    weight_gradient: float
    all_to_all: float
    exposed: float
    send: float
    offload: float

    @property
    def forward(self) -> float:
        """Forward with all that shows."""
        return self.forward_compute + self.exposed * self.all_to_all

    @property
    def backward(self) -> float:
        """Backward with all that shows."""
        products = self.activation_gradient + self.weight_gradient
        shown = EXPOSED_WHEN_OVERLAPPED * 2 * self.offload
        return products + self.exposed * self.all_to_all + shown

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def stage_times(job: Job, stage: Stage) -> StageTimes:
    """The times of one stage on `job.gpu`, by measured rates: an estimate."""
    degrees, gpu = job.degrees, job.gpu
    rate = gpu.flops * (TENSOR_PARALLEL_EFFICIENCY if degrees.tensor > 1 else 1.0)
    share = job.tokens / degrees.tensor / degrees.context
    products, core = (part * share / rate for part in _flops(job, stage))
    num_layers = len(stage.layers) + len(stage.mtp_layers)
    num_moe = sum(not job.shape.is_dense(layer) for layer in stage.layers)
    num_moe += len(stage.mtp_layers) * (not job.shape.is_dense(job.shape.num_layers - 1))
    context = num_layers * message_seconds(job, "cp", context_bytes_per_layer(job), overlapped=True)
    experts = num_moe * message_seconds(job, "ep", expert_bytes_per_layer(job))
    rebuilt, fetched = _rebuilding(job, stage)
    overlap = job.config.parallel.overlap_moe_expert_parallel_comm
    looked_up, added = _embedding(job) if stage.embedding else (0.0, 0.0)
    hop = message_seconds(job, "pp", hidden_bytes(job)) if degrees.pipeline > 1 else 0.0
    projections = 2 * num_layers * attention_projections(job.config.model) * share / rate
    return StageTimes(
        attention=projections + core + context / 2,
        forward_compute=products + core + context / 2 + looked_up,
        activation_gradient=products + 2 * core + context / 2 + rebuilt,
        weight_gradient=products + added,
        all_to_all=experts / 2,
        exposed=EXPOSED_WHEN_OVERLAPPED if overlap else 1.0,
        send=hop,
        offload=fetched,
    )


def _embedding(job: Job) -> tuple[float, float]:
    """Seconds of a look-up, and of its gradient, which goes over the rows that were looked up.

    They are turned into fp32 and added to the sum (model/vocabulary.py); of a vocabulary that is
    cut, every tensor rank adds those of all tokens.
    """
    elements = job.tokens / job.degrees.context * job.shape.hidden_size
    rate = job.gpu.memory_rate
    return 2 * hidden_bytes(job) / rate, elements * (job.width + 4 * 4) / rate


def _flops(job: Job, stage: Stage) -> tuple[float, float]:
    """Operations of forward for one token: products with weights, and the attention core."""
    model, shape = job.config.model, job.shape
    head_size = model.qk_head_dim + model.qk_pos_emb_head_dim + model.v_head_dim
    core = float(job.config.schedule.seq_length * model.num_attention_heads * head_size)
    dense = [shape.is_dense(layer) for layer in stage.layers]
    dense += [shape.is_dense(shape.num_layers - 1)] * len(stage.mtp_layers)
    products = 0.0
    for is_dense in dense:
        weights = attention_projections(model)
        if is_dense:
            weights += swiglu(model, model.ffn_hidden_size)
        else:
            weights += model.moe_router_topk * swiglu(model, model.moe_ffn_hidden_size)
            weights += swiglu(model, model.moe_shared_expert_intermediate_size)
            weights += model.num_experts * model.hidden_size
        products += 2 * weights
    head = 2 * model.vocab_size * model.hidden_size
    products += len(stage.mtp_layers) * 4 * model.hidden_size**2
    products += head * (stage.loss + len(stage.mtp_layers))
    return products, core * len(dense)


def _rebuilding(job: Job, stage: Stage) -> tuple[float, float]:
    """Seconds of a micro-batch for what is recomputed or quantised, and to fetch what is offloaded.

    Products for MLA's up-projections; three passes over memory for the rest.
    """
    model = job.config.model
    products = moved = fetched = 0.0
    for count, tensor, policy in stage_tensors(job, stage):
        if policy is Policy.KEEP:
            continue
        moved += 3 * count * tensor.elements * tensor.width
        fetched += count * tensor.host_bytes(policy, job.imbalance)
        if tensor.name in ("query", "key", "value"):
            latent = model.kv_lora_rank
            if tensor.name == "query":
                latent = model.q_lora_rank or model.hidden_size
            products += 2 * count * tensor.elements * latent
    rebuilt = products / job.gpu.flops + moved / job.gpu.memory_rate
    return rebuilt, fetched / job.gpu.host_rate
