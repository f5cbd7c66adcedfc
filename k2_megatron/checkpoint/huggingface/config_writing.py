# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`config.json` for an exported model, from our `model` section.

A key that the released format cannot express is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from k2_megatron.checkpoint.huggingface.config_fields import (
    ARCHITECTURE,
    FIXED,
    KNOWN,
    MODEL_TYPES,
    TO_MODEL,
    YARN_TO_MODEL,
    groups_problem,
    mscale_problem,
)
from k2_megatron.config.model import ModelConfig
from k2_megatron.errors import ConfigError


def write_config_json(
    model: ModelConfig, *, dtype: str, context: int, like: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The fields of the config.json of an exported model.

    Args:
        dtype: of the weights, in torch's word.
        context: tokens of context the model was trained with; YaRN's is computed.
        like: fields of the release the model began as: what is no part of the model, such as
            the tokens' ids, is taken over. None: DeepSeek-V3's class, no token ids.

    Raises:
        ConfigError: a key of the `model` section has no counterpart there.
    """
    _refuse_what_releases_lack(model)
    found: dict[str, Any] = {"model_type": MODEL_TYPES[0], "bos_token_id": None}
    found |= {"eos_token_id": None, "initializer_range": model.init_method_std}
    found |= {name: value for name, value in (like or {}).items() if name in KNOWN}
    for name in ("quantization_config", "rope_parameters", "dtype", "num_mtp_layers"):
        found.pop(name, None)
    yarn = model.rope_type == "yarn"
    original = model.original_max_position_embeddings
    found |= {name: getattr(model, key) for name, key in TO_MODEL.items()}
    found |= {
        name: value
        for name, value in FIXED.items()
        if name not in ("is_encoder_decoder", "add_cross_attention", "partial_rotary_factor")
    }
    found |= {
        "architectures": [ARCHITECTURE],
        "n_shared_experts": (
            model.moe_shared_expert_intermediate_size // model.moe_ffn_hidden_size
        ),
        "norm_topk_prob": model.moe_router_topk > 1,
        "num_key_value_heads": model.num_attention_heads,
        "num_nextn_predict_layers": model.mtp_num_layers,
        "max_position_embeddings": (
            round(model.rotary_scaling_factor * original) if yarn else context
        ),
        "rope_theta": model.rotary_base,
        "rope_scaling": (
            {
                "type": "yarn",
                **{name: getattr(model, key) for name, (key, _) in YARN_TO_MODEL.items()},
            }
            if yarn
            else None
        ),
        "torch_dtype": dtype,
    }
    for name, size in (
        ("head_dim", model.qk_pos_emb_head_dim),
        ("qk_head_dim", model.qk_head_dim + model.qk_pos_emb_head_dim),
    ):
        if name in found:
            found[name] = size
    return dict(sorted(found.items()))


def _refuse_what_releases_lack(model: ModelConfig) -> None:
    problems = []
    width, one = model.moe_shared_expert_intermediate_size, model.moe_ffn_hidden_size
    if width % one:
        problems.append(
            f"model.moe_shared_expert_intermediate_size: {width} is no multiple of "
            f"moe_ffn_hidden_size {one}; config.json gives the number of shared experts"
        )
    if wrong := groups_problem(
        model.moe_router_num_groups, model.moe_router_group_topk, model.moe_router_topk
    ):
        problems.append(f"model.moe_router_group_topk: {wrong}")
    if model.rope_type == "yarn" and (wrong := mscale_problem(model.mscale, model.mscale_all_dim)):
        problems.append(f"model.mscale: {wrong}")
    if problems:
        lines = "\n  ".join(problems)
        raise ConfigError(f"this model has no Hugging Face counterpart:\n  {lines}")
