# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How many floating-point operations training takes: the numerator of FLOP/s and of MFU."""

from __future__ import annotations

from k2_megatron.config.model import ModelConfig
from k2_megatron.planner.parameters import count_parameters, layer_norms


def active_matmul_parameters(model: ModelConfig) -> int:
    """Weights that one token is multiplied with, once for each use.

    All active parameters without embedding, norms and selection biases. The head counts once for
    the model and once for each MTP layer, which uses it again.
    """
    counts = count_parameters(model)
    num_moe = model.num_layers - model.first_k_dense_replace
    mtp_is_moe = num_moe > 0
    biases = model.num_experts * (num_moe + mtp_is_moe * model.mtp_num_layers)
    mtp_norms = model.mtp_num_layers * (layer_norms(model) + 3 * model.hidden_size)
    head_again = model.mtp_num_layers * counts.head
    active = counts.active_without_embedding + head_again
    return active - counts.norms - mtp_norms - biases


def model_flops_per_token(model: ModelConfig, seq_length: int) -> float:
    """Floating-point operations that one token takes in training, forward and backward.

        6 * active_matmul_parameters
        + 3 * layers * seq_length * num_attention_heads * (qk_head_dim + qk_pos_emb_head_dim
                                                           + v_head_dim)

    A weight costs 2 operations (multiply, add) forward and 4 backward (gradients of input and of
    weight). The second term is the attention core: scores and weighted values cost 2 operations an
    element and key, a token sees seq_length / 2 keys on average under the causal mask, and
    backward costs twice forward. `layers` includes MTP layers. Not counted: recomputation, norms,
    activations, softmax, router selection and the optimizer.

    Args:
        model: the model.
        seq_length: tokens of a sequence.
    """
    layers = model.num_layers + model.mtp_num_layers
    head_size = model.qk_head_dim + model.qk_pos_emb_head_dim + model.v_head_dim
    core = 3 * layers * seq_length * model.num_attention_heads * head_size
    return float(6 * active_matmul_parameters(model) + core)
