# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every tensor that forward keeps for backward, layer by layer, on one rank.

As megatron-core 0.16.1 saves them with Transformer Engine: for two MoE layers of K2's shapes the
table is within 0.3 % of what was measured (tests/planner/test_activations.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from k2_megatron.memory.policy import TILE, Policies, Policy, policy_of
from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.job import Job


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """One tensor of one layer and micro-batch on one rank.

    Attributes:
        name: as in a memory policy.
        part: the module it belongs to.
        elements: their number with evenly loaded experts.
        width: bytes of an element.
        routed: it has a row for every token sent to this rank's experts, so that their number
            follows the router.
        cols: elements of a row, for the scales of its FP8 copy.
    """

    name: str
    part: str
    elements: float
    width: int
    routed: bool = False
    cols: int = TILE

    def rows_factor(self, imbalance: float) -> float:
        """How many times its balanced size it has."""
        return imbalance if self.routed else 1.0

    def device_bytes(self, policy: Policy, imbalance: float = 1.0) -> float:
        """Bytes of device memory between forward and backward."""
        return (
            self.elements * policy.device_bytes(self.width, self.cols) * self.rows_factor(imbalance)
        )

    def host_bytes(self, policy: Policy, imbalance: float = 1.0) -> float:
        """Bytes of host memory between forward and backward."""
        return (
            self.elements * policy.host_bytes(self.width, self.cols) * self.rows_factor(imbalance)
        )


def layer_tensors(job: Job, *, dense: bool) -> tuple[SavedTensor, ...]:
    """What one layer keeps of one micro-batch."""
    return (*_attention(job), *(_dense(job) if dense else _moe(job)))


def stage_tensors(job: Job, stage: Stage) -> Iterator[tuple[int, SavedTensor, Policy]]:
    """(number of layers, tensor, policy) of one chunk and micro-batch; head and loss included."""
    for count, dense, policies in layer_kinds(job, stage):
        for tensor in layer_tensors(job, dense=dense):
            yield count, tensor, installed_policy(job, policies, tensor.name, dense=dense)
    if stage.mtp_layers:
        for tensor in _joining(job):
            yield len(stage.mtp_layers), tensor, Policy.KEEP
    if stage.loss:
        for tensor in head_tensors(job):
            yield 1 + len(stage.mtp_layers), tensor, Policy.KEEP


def installed_policy(job: Job, policies: Policies, name: str, *, dense: bool) -> Policy:
    """What is really done with a tensor.

    Transformer Engine's dense layers have their norm inside the up-projection, which keeps the
    norm's output. Its attention under context parallelism keeps keys and values as they came from
    the neighbour, a copy that nobody can empty.
    """
    fused = job.on_gpu and dense and name == "mlp_norm_output"
    copied = job.on_gpu and job.degrees.context > 1 and name in ("key", "value")
    return Policy.KEEP if fused or copied else policy_of(policies, name)


def layer_kinds(job: Job, stage: Stage) -> list[tuple[int, bool, Policies]]:
    """(number, whether dense, policies) of a chunk's layers that are alike; MTP layers included."""
    count = job.shape.num_layers
    layers = [*stage.layers, *(count + index for index in stage.mtp_layers)]
    found: list[tuple[int, bool, Policies]] = []
    for layer in sorted(layers, key=lambda layer: not job.shape.is_dense(min(layer, count - 1))):
        kind = job.shape.is_dense(min(layer, count - 1)), job.policies_of(layer)
        for index, (number, *other) in enumerate(found):
            if tuple(other) == kind:
                found[index] = (number + 1, *kind)
                break
        else:
            found.append((1, *kind))
    return found


def head_tensors(job: Job) -> tuple[SavedTensor, ...]:
    """Final norm and output layer; the loss turns the logits into their gradient in place."""
    hidden, degrees = job.shape.hidden_size, job.degrees
    tokens, width = job.tokens / degrees.context, job.width
    logits_width = width if job.on_gpu else 2 * width  # megatron-core's own loss works on a copy
    rows = tokens / degrees.tensor
    return (
        SavedTensor(name="final_norm_input", part="head", elements=rows * hidden, width=width),
        SavedTensor(name="final_norm_output", part="head", elements=rows * hidden, width=width),
        SavedTensor(
            name="logits", part="head", elements=rows * job.shape.vocab_size, width=logits_width
        ),
    )


def _attention(job: Job) -> Iterator[SavedTensor]:
    """MLA: latents before and after their norms, what the attention kernel reads and writes."""
    shape, tensor = job.shape, job.degrees.tensor
    rows = job.tokens / job.degrees.context / tensor

    def saved(name: str, size: float, width: int = job.width) -> SavedTensor:
        return SavedTensor(name=name, part="attention", elements=rows * size, width=width)

    heads, qk = shape.num_heads, shape.qk_head_dim + shape.qk_rope_dim
    yield saved("attention_input", shape.hidden_size)
    yield saved("attention_norm_output", shape.hidden_size)
    if shape.q_lora_rank is not None:
        yield saved("query_latent", shape.q_lora_rank)
        yield saved("query_latent_norm_output", shape.q_lora_rank)
    yield saved("kv_latent", shape.kv_lora_rank + shape.qk_rope_dim)
    yield saved("kv_latent_norm_output", shape.kv_lora_rank)
    # Of whole sequences but a share of the heads: rows / tensor of all heads, the same number.
    yield saved("query", heads * qk)
    yield saved("key", heads * qk)
    yield saved("value", heads * shape.v_head_dim)
    yield saved("attention_output", heads * shape.v_head_dim)
    yield saved("attention_statistics", heads, 4)
    if not job.has_fused_attention:
        yield saved("attention_probabilities", 2 * heads * job.config.schedule.seq_length)


def _moe(job: Job) -> Iterator[SavedTensor]:
    shape, degrees, model = job.shape, job.degrees, job.config.model
    rows = job.tokens / degrees.context / degrees.tensor
    # Rows of this rank's experts: every token topk times, wherever it came from.
    routed = rows * model.moe_router_topk
    width = job.width

    def saved(
        name: str,
        part: str,
        elements: float,
        of_width: int = width,
        *,
        is_routed: bool = False,
        cols: int = TILE,
    ) -> SavedTensor:
        return SavedTensor(
            name=name, part=part, elements=elements, width=of_width, routed=is_routed, cols=cols
        )

    yield saved("mlp_input", "norms", rows * shape.hidden_size)
    yield saved("mlp_norm_output", "norms", rows * shape.hidden_size)
    # fp32 logits, scores and weights, int32 row map of 2 E + 1, a bit map; see router.py.
    yield saved("router", "router", rows * (5.25 * shape.num_experts + 1), 4)
    varies = degrees.expert > 1
    whole = routed * degrees.expert_tensor
    hidden, up = shape.hidden_size, 2 * shape.expert_size
    up_here = up // degrees.expert_tensor
    yield saved("expert_input", "experts", whole * hidden, is_routed=varies, cols=hidden)
    yield saved("expert_swiglu_input", "experts", routed * up, is_routed=varies, cols=up_here)
    yield saved("expert_swiglu_output", "experts", routed * shape.expert_size, is_routed=varies)
    if job.gate_after_down:
        yield saved("expert_output", "experts", whole * shape.hidden_size, is_routed=varies)
    if shape.shared_expert_size:
        size = shape.shared_expert_size
        up_here = 2 * size // degrees.tensor
        yield saved("shared_swiglu_input", "shared expert", rows * 2 * size, cols=up_here)
        yield saved("shared_swiglu_output", "shared expert", rows * size)


def _dense(job: Job) -> Iterator[SavedTensor]:
    shape = job.shape
    rows = job.tokens / job.degrees.context / job.degrees.tensor
    for name, size in (
        ("mlp_input", shape.hidden_size),
        ("mlp_norm_output", shape.hidden_size),
        ("dense_swiglu_input", 2 * shape.ffn_size),
        ("dense_swiglu_output", shape.ffn_size),
    ):
        part = "dense mlp" if name.startswith("dense") else "norms"
        cols = size // job.degrees.tensor if name == "dense_swiglu_input" else TILE
        yield SavedTensor(name=name, part=part, elements=rows * size, width=job.width, cols=cols)


def _joining(job: Job) -> Iterator[SavedTensor]:
    """What an MTP layer keeps beside a layer's: two norms' inputs, their joined outputs, a norm."""
    rows = job.tokens / job.degrees.context / job.degrees.tensor
    for name, factor in (("mtp_norm_inputs", 2), ("mtp_joined", 2)):
        yield SavedTensor(
            name=name, part="mtp", elements=rows * factor * job.shape.hidden_size, width=job.width
        )


@dataclass(frozen=True, kw_only=True)
class ChunkActivations:
    """Bytes of one chunk and micro-batch on one rank.

    Attributes:
        device: bytes by tensor, on the device.
        leaving: bytes by tensor, on the host while other micro-batches are computed, else on the
            device too.
        recomputed: bytes of the largest layer's tensors that backward rebuilds or dequantises.
        emptied: the part of them that experts hold until their outputs are there.
        sent_again: the experts' input is rebuilt.
        attention: bytes of a layer's norms, attention and router, of what may travel as well.
    """

    device: dict[str, float]
    leaving: dict[str, float]
    recomputed: float
    emptied: float
    sent_again: bool
    attention: float

    @property
    def total(self) -> float:
        """Bytes on the device from forward to backward."""
        return sum(self.device.values())

    @property
    def host(self) -> float:
        """Bytes of pinned host memory."""
        return sum(self.leaving.values())


def chunk_activations(job: Job, stage: Stage) -> ChunkActivations:
    """Bytes of one chunk under the job's policies."""
    device: dict[str, float] = {}
    leaving: dict[str, float] = {}
    for count, tensor, policy in stage_tensors(job, stage):
        size = count * tensor.device_bytes(policy, job.imbalance)
        device[tensor.name] = device.get(tensor.name, 0.0) + size
        away = count * tensor.host_bytes(policy, job.imbalance)
        if away:
            leaving[tensor.name] = leaving.get(tensor.name, 0.0) + away
    kinds = [(dense, policies) for _, dense, policies in layer_kinds(job, stage)]
    rebuilt = [_rebuilt(job, dense, policies) for dense, policies in kinds]
    return ChunkActivations(
        device=device,
        leaving=leaving,
        recomputed=max((sum(sizes.values()) for sizes in rebuilt), default=0.0),
        emptied=max((sizes.get("experts", 0.0) for sizes in rebuilt), default=0.0),
        sent_again=any(
            policy_of(policies, "expert_input") is Policy.RECOMPUTE
            for dense, policies in kinds
            if not dense
        ),
        attention=max(
            (_attention_part(job, dense, policies) for dense, policies in kinds), default=0.0
        ),
    )


def _attention_part(job: Job, dense: bool, policies: Policies) -> float:
    """Bytes of a layer that its forward keeps in front of the experts, what may travel as well."""
    total = 0.0
    for tensor in layer_tensors(job, dense=dense):
        if tensor.part in ("attention", "norms", "router"):
            policy = installed_policy(job, policies, tensor.name, dense=dense)
            total += tensor.device_bytes(policy) + tensor.host_bytes(policy)
    return total


def _rebuilt(job: Job, dense: bool, policies: Policies) -> dict[str, float]:
    """Bytes, by part of the layer, of what is neither kept nor only away: it is there twice."""
    sizes: dict[str, float] = {}
    for tensor in layer_tensors(job, dense=dense):
        policy = installed_policy(job, policies, tensor.name, dense=dense)
        if policy not in (Policy.KEEP, Policy.HOST):
            size = tensor.elements * tensor.width * tensor.rows_factor(job.imbalance)
            sizes[tensor.part] = sizes.get(tensor.part, 0.0) + size
    return sizes
