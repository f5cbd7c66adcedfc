# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Memory that was published for K2 and DeepSeek-V3, from the planner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k2_megatron.config.presets import model_from_preset
from k2_megatron.memory.policy import PRESETS, RECOMPUTED, Policy
from k2_megatron.planner import newton_schulz
from k2_megatron.planner.job import Job, job_of
from k2_megatron.planner.parameters import count_parameters
from k2_megatron.planner.plan import RankPlan, make_plan, rank_plan
from tests.planner.planner_helpers import GB, GIB, config_of, k2_cluster


def test_k2_parameters_and_gradients_on_256_gpus() -> None:
    """6.16 TB in one copy; 31.7 GB on the first GPU, 28.9 in the middle, 28.7 on the last."""
    assert 6 * count_parameters(model_from_preset("kimi-k2")).total == pytest.approx(
        6.16e12, rel=1e-3
    )
    layout = "Etttt|(tttt|)*13tt|tttL"
    job = job_of(k2_cluster(pipeline_model_parallel_layout=layout), 256)
    states = [rank_plan(job, rank).states for rank in (0, 7, 15)]
    found = [round((one.parameter_bytes + one.gradient_bytes) / GB, 1) for one in states]
    assert found == [31.7, 28.9, 28.7]


@pytest.mark.parametrize(
    ("nodes", "published_gb"), [(32, 32.1), (64, 16.1), (128, 8.0), (256, 4.0), (512, 2.0)]
)
def test_k2_optimizer_state_by_cluster(nodes: int, published_gb: float) -> None:
    """The mean over all GPUs at 8 bytes a parameter; ours has 12 for embedding and head."""
    job = job_of(k2_cluster(), 8 * nodes)
    plans = [rank_plan(job, rank) for rank in range(16)]
    mean = sum(plan.optimizer_bytes for plan in plans) / 16 / GB
    assert mean == pytest.approx(published_gb, rel=0.05)


@pytest.mark.parametrize(
    ("virtual", "in_flight", "gb", "host_gb"),
    [(None, 64, (136, 66, 41), 327), (2, 94, (188, 92, 56), 452), (4, 79, (158, 77, 47), 380)],
)
def test_k2_activations_in_flight(
    virtual: int | None, in_flight: int, gb: tuple[int, ...], host_gb: int
) -> None:
    """Four MoE layers a rank, store-all with the experts' outputs, recomputation, FP8; and offload.

    The published figures count 68, 94 and 79 layers in flight, one warm-up more without
    interleaving, where the engine has none. Per layer in flight they are ours to 5 %, the router's
    tensors (1.7 % of all, more of less) included.
    """
    overlap = virtual is not None
    config = config_of(
        model_from_preset("kimi-k2", num_layers=64, first_k_dense_replace=0),
        pipeline_model_parallel_size=16,
        virtual_pipeline_model_parallel_size=virtual,
        pipeline_model_parallel_layout=_even(64, 16 * (virtual or 1)),
        expert_model_parallel_size=16,
        overlap_moe_expert_parallel_comm=overlap,
    )
    job = replace(job_of(config, 256), gate_after_down=True)
    published = 68 if in_flight == 64 else in_flight
    for policies, size in zip(({}, RECOMPUTED, PRESETS["k2"]), gb, strict=True):
        rank = rank_plan(replace(job, policies=policies), 0)
        assert sum(rank.in_flight) * 4 // (virtual or 1) == in_flight
        held = rank.held_bytes - rank.activations["router"]
        assert held / GB / in_flight == pytest.approx(size / published, rel=0.05)
    even = replace(job.config, memory=replace(job.config.memory, host_headroom=1.0))
    host = rank_plan(replace(job, config=even, policies=PRESETS["k2-full"]), 0).host_bytes
    assert 8 * host / GB / in_flight == pytest.approx(host_gb / published, rel=0.05)


def _even(layers: int, stages: int) -> str:
    each = "t" * (layers // stages)
    return "|".join(["E" + each, *[each] * (stages - 2), each + "L"])


def deepseek_v3() -> Job:
    """256 GPUs at PP4, VPP4, EP64 with AdamW; 64 MoE layers, so that every rank has 16.

    The published numbers are of one rank that has neither embedding nor head nor a dense layer.
    """
    model = model_from_preset(
        "kimi-k2",
        num_layers=64,
        num_attention_heads=128,
        num_experts=256,
        first_k_dense_replace=0,
        vocab_size=129280,
    )
    config = config_of(
        model,
        optimizer="adamw",
        batch=2048,
        pipeline_model_parallel_size=4,
        virtual_pipeline_model_parallel_size=4,
        pipeline_model_parallel_layout=_even(64, 16),
        expert_model_parallel_size=64,
    )
    return replace(job_of(config, 256), gate_after_down=True)


def _third_rank(job: Job, *recomputed: str) -> RankPlan:
    return rank_plan(replace(job, policies=dict.fromkeys(recomputed, Policy.RECOMPUTE)), 2)


def test_deepseek_v3_on_256_gpus() -> None:
    """36.4 GB weights and gradients, 32.1 optimizer, 131.0 activations, 199.5 in all.

    arXiv 2603.07685; its GB are GiB, and the numbers are those of pipeline rank 2 of 4: 15
    micro-batches of 4 layers in flight.
    """
    rank = _third_rank(deepseek_v3())
    assert sum(rank.in_flight) == 15
    states = rank.states
    assert (states.parameter_bytes + states.gradient_bytes) / GIB == pytest.approx(36.4, rel=0.05)
    assert rank.optimizer_bytes / GIB == pytest.approx(32.1, rel=0.05)
    assert rank.held_bytes / GIB == pytest.approx(131.0, rel=0.05)
    assert (rank.static_bytes + rank.held_bytes) / GIB == pytest.approx(199.5, rel=0.05)


def test_deepseek_v3_recomputation() -> None:
    """What each saves, in GiB.

    Published: MLA's up-projections 30.4, SwiGLU 3.8, norms 8.2, and 26.3 for experts' outputs that
    need not be stored. SwiGLU's is half of ours, one byte an element: its output is stored in FP8
    there for the next product. Norms are 140 MiB a layer there, two and a half tensors of
    [4096, 7168] in bf16; two are stored here, and the latents' norms count with the up-projections.
    """
    job = deepseek_v3()
    all_kept = _third_rank(job).held_bytes

    def saved(*names: str) -> float:
        return (all_kept - _third_rank(job, *names).held_bytes) / GIB

    latents = ("query_latent_norm_output", "kv_latent_norm_output")
    assert saved("query", "key", "value", *latents) == pytest.approx(30.4, rel=0.05)
    assert saved("expert_output") == pytest.approx(26.3, rel=0.05)
    assert saved("expert_swiglu_output") / 2 == pytest.approx(3.8, rel=0.05)
    norms = saved("attention_norm_output", "mlp_norm_output")
    assert norms / 2 * 2.5 == pytest.approx(8.2, rel=0.05)


def test_newton_schulz_of_k2() -> None:
    """4.85e16 FLOPs a step if each matrix is done once, 0.38 % of 6 x active x tokens."""
    plan = make_plan(job_of(k2_cluster(), 512))
    total = sum(one.flops for one in plan.muon)
    assert total == pytest.approx(4.85e16, rel=0.005)
    assert total / (6 * 31.69e9 * 2**26) == pytest.approx(0.0038, rel=0.01)


def test_batches_of_newton_schulz_are_those_of_the_optimizer() -> None:
    """The planner imports no torch, so it has its own copy of the number."""
    from k2_megatron.parallel.muonclip import optimizer

    assert newton_schulz.BATCH_ELEMENTS == optimizer.BATCH_ELEMENTS
