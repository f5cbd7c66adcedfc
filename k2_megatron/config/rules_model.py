# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about the shape of the model. Each function is named for what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from k2_megatron.config.config import Config
from k2_megatron.config.no_effect import has_experts
from k2_megatron.config.refusal import Refusal


def refuse_odd_rotary_size(config: Config) -> Iterable[Refusal]:
    """Rotary positions turn pairs of elements."""
    if config.model.qk_pos_emb_head_dim % 2:
        yield Refusal(("model.qk_pos_emb_head_dim",), "an even integer", "rotation takes pairs")


def refuse_more_dense_layers_than_layers(config: Config) -> Iterable[Refusal]:
    """The dense layers are the first of num_layers."""
    model = config.model
    if model.first_k_dense_replace > model.num_layers:
        yield Refusal(
            ("model.first_k_dense_replace", "model.num_layers"),
            f"an integer from 0 to {model.num_layers}",
            "the dense layers are among the model's layers",
        )


def refuse_choosing_more_experts_than_exist(config: Config) -> Iterable[Refusal]:
    """A token goes to moe_router_topk different experts."""
    model = config.model
    if has_experts(config) and model.moe_router_topk > model.num_experts:
        yield Refusal(
            ("model.moe_router_topk", "model.num_experts"),
            f"an integer from 1 to {model.num_experts}",
            "a token's experts are different ones",
        )


def refuse_uneven_expert_groups(config: Config) -> Iterable[Refusal]:
    """Group-limited routing divides the experts into equal groups."""
    model = config.model
    if has_experts(config) and model.num_experts % model.moe_router_num_groups:
        yield Refusal(
            ("model.moe_router_num_groups", "model.num_experts"),
            f"a divisor of {model.num_experts}",
            "groups of experts are of one size",
        )


def refuse_choosing_more_groups_than_exist(config: Config) -> Iterable[Refusal]:
    """A token's experts come from moe_router_group_topk different groups."""
    model = config.model
    if has_experts(config) and model.moe_router_group_topk > model.moe_router_num_groups:
        yield Refusal(
            ("model.moe_router_group_topk", "model.moe_router_num_groups"),
            f"an integer from 1 to {model.moe_router_num_groups}",
            "the chosen groups are different ones",
        )


def refuse_topk_that_chosen_groups_cannot_give(config: Config) -> Iterable[Refusal]:
    """megatron-core ranks groups by their best topk / group_topk experts, so that must be whole."""
    model = config.model
    if not has_experts(config) or model.num_experts % model.moe_router_num_groups:
        return
    group_size = model.num_experts // model.moe_router_num_groups
    groups = model.moe_router_group_topk
    share, left = divmod(model.moe_router_topk, groups)
    if model.moe_router_topk > model.num_experts or groups > model.moe_router_num_groups:
        return
    if left or share > group_size:
        yield Refusal(
            (
                "model.moe_router_topk",
                "model.moe_router_group_topk",
                "model.moe_router_num_groups",
                "model.num_experts",
            ),
            f"a multiple of {groups}, at most {groups * group_size}",
            f"each of the {groups} chosen groups of {group_size} experts gives as many",
        )


MODEL_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_odd_rotary_size,
    refuse_more_dense_layers_than_layers,
    refuse_choosing_more_experts_than_exist,
    refuse_uneven_expert_groups,
    refuse_choosing_more_groups_than_exist,
    refuse_topk_that_chosen_groups_cannot_give,
)
