# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The same equality for what the model and the engine can be switched to, in a few layouts."""

from __future__ import annotations

import pytest

from tests.distributed.equality import assert_equals_one_process
from tests.distributed.layouts import Layout

EP2 = Layout(world_size=2, ep=2)
DP2 = Layout(world_size=2)
TP2_EP2 = Layout(world_size=2, tp=2, ep=2)
TP2_ETP2 = Layout(world_size=2, tp=2, etp=2)
PP2 = Layout(world_size=2, pp=2)
PP2_VPP2 = Layout(world_size=2, pp=2, vpp=2)
PP2_VPP2_DP2 = Layout(world_size=4, pp=2, vpp=2)
TP2_PP2_EP2 = Layout(world_size=4, tp=2, pp=2, ep=2)

MODELS = {
    "mtp": ("model.mtp_num_layers=1",),
    "sequence aux loss": ("model.moe_aux_loss_coeff=0.01",),
    "yarn": ("model.rope_type=yarn", "model.original_max_position_embeddings=8"),
    "no q_lora": ("model.q_lora_rank=null",),
    "expert groups": ("model.moe_router_num_groups=4", "model.moe_router_group_topk=2"),
    "no shared expert": ("model.moe_shared_expert_intermediate_size=0",),
    "no dense layer": ("model.first_k_dense_replace=0",),
    "frozen router bias": ("model.moe_router_bias_update_rate=0.0",),
}
LAYOUT = "parallel.pipeline_model_parallel_layout="
ENGINE = {
    "allgather dispatcher": ("parallel.moe_token_dispatcher_type=allgather",),
    "overlapped reduce": ("parallel.overlap_grad_reduce=true",),
    "overlapped reduce and gather": (
        "parallel.overlap_grad_reduce=true",
        "parallel.overlap_param_gather=true",
    ),
    "uneven stages": (f"{LAYOUT}'Et|ttttL'",),
    "loss alone on its stage": (f"{LAYOUT}'Ettttt|L'",),
    "four chunks, one empty": (
        "parallel.virtual_pipeline_model_parallel_size=4",
        f"{LAYOUT}'E|t|t||t|t|t|L'",
    ),
    "uneven chunks": ("parallel.virtual_pipeline_model_parallel_size=2", f"{LAYOUT}'E|tt|t|ttL'"),
}


@pytest.mark.parametrize("layout", [TP2_EP2, PP2_VPP2], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_model_variant(model: str, layout: Layout) -> None:
    assert_equals_one_process(layout, MODELS[model])


@pytest.mark.parametrize(
    ("engine", "layout"),
    [
        ("allgather dispatcher", EP2),
        ("allgather dispatcher", TP2_EP2),
        ("overlapped reduce", DP2),
        ("overlapped reduce", PP2_VPP2_DP2),
        ("overlapped reduce and gather", EP2),
        ("overlapped reduce and gather", PP2_VPP2_DP2),
        ("overlapped reduce and gather", TP2_PP2_EP2),
        ("uneven stages", PP2),
        ("uneven chunks", PP2),
        ("loss alone on its stage", PP2),
        ("four chunks, one empty", PP2),
    ],
    ids=str,
)
def test_engine_variant(engine: str, layout: Layout) -> None:
    assert_equals_one_process(layout, engine=ENGINE[engine])
