# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Exact parameter counts of a model, part by part, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from k2_megatron.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of stored elements, over all layers.

    Attributes:
        embedding: the word embedding.
        attention: the projections of MLA.
        dense_ffn: the feed-forward of the dense layers.
        routed_experts: all routed experts.
        shared_experts: the shared experts.
        router: router weights and selection biases; a bias is stored but has no gradient.
        norms: RMSNorm weights, those of the latents and the final one included.
        head: the output layer.
        mtp: the multi-token-prediction layers, all their parts together; embedding and head are
            shared with the model and not counted again.
        active_routed_experts: the part of `routed_experts` that one token passes through.
        active_mtp: the part of `mtp` that one token passes through.
    """

    embedding: int
    attention: int
    dense_ffn: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    head: int
    mtp: int
    active_routed_experts: int
    active_mtp: int

    @property
    def total(self) -> int:
        """Every stored element, selection biases included."""
        return self._always_active + self.routed_experts + self.mtp

    @property
    def active(self) -> int:
        """What one token passes through, embedding, head and active MTP parts included."""
        return self._always_active + self.active_routed_experts + self.active_mtp

    @property
    def active_without_embedding(self) -> int:
        """`active` without the word embedding, which is looked up and not multiplied."""
        return self.active - self.embedding

    @property
    def _always_active(self) -> int:
        return (
            self.embedding
            + self.attention
            + self.dense_ffn
            + self.shared_experts
            + self.router
            + self.norms
            + self.head
        )


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Count the parameters of a model.

    Kimi K2 has 1,026,408,232,448, as many as the released checkpoint stores. The report's 1.04 T
    and 32.6 B active are not those of the released shape, which has 32.9 B active with the
    embedding and 31.7 B without.
    """
    num_dense = model.first_k_dense_replace
    num_moe = model.num_layers - num_dense
    expert = swiglu(model, model.moe_ffn_hidden_size)
    vocabulary = model.vocab_size * model.hidden_size
    mtp, active_mtp = _mtp_layer(model)
    return ParameterCounts(
        embedding=vocabulary,
        attention=model.num_layers * attention_projections(model),
        dense_ffn=num_dense * swiglu(model, model.ffn_hidden_size),
        routed_experts=num_moe * model.num_experts * expert,
        shared_experts=num_moe * swiglu(model, model.moe_shared_expert_intermediate_size),
        router=num_moe * _router(model),
        norms=model.num_layers * layer_norms(model) + model.hidden_size,
        head=vocabulary,
        mtp=model.mtp_num_layers * mtp,
        active_routed_experts=num_moe * model.moe_router_topk * expert,
        active_mtp=model.mtp_num_layers * active_mtp,
    )


def attention_projections(model: ModelConfig) -> int:
    """Elements of the MLA projections of one layer, without the norms of the latents."""
    heads = model.num_attention_heads
    query = heads * (model.qk_head_dim + model.qk_pos_emb_head_dim)
    if model.q_lora_rank is None:
        queries = model.hidden_size * query
    else:
        queries = model.q_lora_rank * (model.hidden_size + query)
    kv_down = model.hidden_size * (model.kv_lora_rank + model.qk_pos_emb_head_dim)
    kv_up = model.kv_lora_rank * heads * (model.qk_head_dim + model.v_head_dim)
    output = heads * model.v_head_dim * model.hidden_size
    return queries + kv_down + kv_up + output


def swiglu(model: ModelConfig, inner_size: int) -> int:
    """Elements of a SwiGLU feed-forward of a width: gate, up and down."""
    return 3 * model.hidden_size * inner_size


def layer_norms(model: ModelConfig) -> int:
    """Elements of the norms of one layer: before attention, before feed-forward, latents."""
    return 2 * model.hidden_size + (model.q_lora_rank or 0) + model.kv_lora_rank


def _router(model: ModelConfig) -> int:
    """Elements of one layer's router weight and selection bias."""
    return model.num_experts * (model.hidden_size + 1)


def _mtp_layer(model: ModelConfig) -> tuple[int, int]:
    """Stored and active elements of one MTP layer.

    It joins two normed vectors by a projection [h, 2h], runs one layer like the model's last, and
    norms the result.
    """
    common = attention_projections(model) + layer_norms(model)
    common += 2 * model.hidden_size**2 + 3 * model.hidden_size
    if model.first_k_dense_replace == model.num_layers:
        layer = common + swiglu(model, model.ffn_hidden_size)
        return layer, layer
    expert = swiglu(model, model.moe_ffn_hidden_size)
    common += swiglu(model, model.moe_shared_expert_intermediate_size) + _router(model)
    return common + model.num_experts * expert, common + model.moe_router_topk * expert
