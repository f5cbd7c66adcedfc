# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The layer specs: Transformer Engine's on a GPU, megatron-core's local ones on a CPU."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.post_training.modelopt.layers import Linear
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig

from k2_megatron.model.local_layers import MLACoreAttention, RMSNorm
from k2_megatron.recompute.experts import GroupedExperts, SequentialExperts
from k2_megatron.recompute.mlp import DenseMLP, SharedExpert


def decoder_spec(config: TransformerConfig, vp_stage: int | None, *, use_te: bool) -> Any:
    """Specs of the decoder layers of one model chunk, with the norm behind them."""
    spec = get_gpt_decoder_block_spec(
        config, use_transformer_engine=use_te, normalization="RMSNorm", vp_stage=vp_stage
    )
    for layer in spec.layer_specs:
        _use_our_feed_forward(layer.submodules.mlp, grouped=use_te)
    if not use_te:
        spec.layer_norm = RMSNorm
        for layer in spec.layer_specs:
            _complete_local_layer(layer.submodules)
    elif config.log_max_attention_logit:
        _record_max_logits(spec)
    return spec


def mtp_spec(config: TransformerConfig, decoder: Any, vp_stage: int | None, *, use_te: bool) -> Any:
    """Specs of the multi-token-prediction layers of one model chunk; None where it has none."""
    if not config.mtp_num_layers:
        return None
    spec = get_gpt_mtp_block_spec(config, decoder, use_transformer_engine=use_te, vp_stage=vp_stage)
    if spec is not None and not use_te:
        for layer in spec.layer_specs:
            layer.submodules.enorm = layer.submodules.hnorm = RMSNorm
            layer.submodules.layer_norm = RMSNorm
    return spec


def _use_our_feed_forward(mlp: Any, *, grouped: bool) -> None:
    """Feed-forwards with our SwiGLU, which do with their tensors what the memory policy says.

    Layers may share a spec; setting it twice changes nothing.
    """
    if mlp.module is not MoELayer:
        mlp.module = DenseMLP
        return
    mlp.submodules.experts.module = GroupedExperts if grouped else SequentialExperts
    mlp.submodules.shared_experts.module = SharedExpert


def _complete_local_layer(layer: Any) -> None:
    """Give the local spec norms and attention that work, and whole down-projections.

    The local spec cuts the MLA down-projections over tensor ranks; multi_latent_attention.py:607
    then gathers with a backward that splits, and the rotary key's gradient of the other ranks is
    lost. Transformer Engine's spec holds them whole on every rank; so does this one.
    """
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    attention.q_layernorm = attention.kv_layernorm = RMSNorm
    attention.core_attention = MLACoreAttention
    attention.linear_q_down_proj = attention.linear_kv_down_proj = Linear


def _record_max_logits(spec: Any) -> None:
    """Give Transformer Engine's layers an attention that records; the local one always can."""
    from k2_megatron.model.te_attention import RecordingAttention  # absent with the local layers

    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = RecordingAttention
