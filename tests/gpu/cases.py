# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The gradient-equality matrix: layouts and engine options that must not change the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = str(Path(__file__).parents[1] / "distributed" / "small.yaml")
MEDIUM = str(Path(__file__).with_name("medium.yaml"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of the matrix.

    Attributes:
        name: its name in the report.
        world_size: GPUs it needs.
        options: what differs from the one-GPU reference.
        reference: the one-GPU case that it must repeat within the bounds.
        same_as: the case whose computation is the same, to be equal bit for bit.
        gradient_bound: largest relative error of a gradient, where the dtype's is not it.
    """

    name: str
    world_size: int
    options: tuple[str, ...] = ()
    reference: str = "one"
    same_as: str | None = None
    gradient_bound: float | None = None

    def job(self) -> dict[str, Any]:
        """The case as a job of tests/gpu/worker.py."""
        return {
            "name": self.name,
            "function": "train",
            "kwargs": {
                "config_path": MEDIUM,
                "overrides": list(self.options),
                "num_steps": 3,
            },
        }


TP, PP, EP = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.pipeline_model_parallel_size=2",
    "parallel.expert_model_parallel_size=2",
)
VPP = "parallel.virtual_pipeline_model_parallel_size=2"
CP = "parallel.context_parallel_size=2"
REDUCE = "parallel.overlap_grad_reduce=true"
GATHER = "parallel.overlap_param_gather=true"
OVERLAP = "parallel.overlap_moe_expert_parallel_comm=true"
DELAY = "parallel.delay_wgrad_compute=true"
# Tensor and context parallelism round activations in another order, and in bf16 a router's
# near-tie then falls the other way, a real difference that would hide an unreal one. So tensor
# parallelism is compared in fp32, and context parallelism, which needs bf16, with every expert
# chosen for every token.
FP32 = "precision.dtype=fp32"
# Some heads are hot, so that QK-Clip is part of what is compared.
MUON = ("optimizer.type=muonclip", "optimizer.qk_clip_threshold=0.05")
ALL_EXPERTS = "model.moe_router_topk=8"
# All that is recomputed, and nothing rounded; and the preset that keeps FP8 copies, whose errors
# against the same layout without are those of tests/distributed/test_memory_policies.py.
LEAN = "memory.preset=k2-lean"
FP8 = "memory.preset=k2"
FP8_BOUND = 0.06
# The same, with what remains in host memory; and what is kept otherwise, as it is.
FULL = "memory.preset=k2-full"
HOST = (
    "memory.tensors=[{tensors: 'attention_input, query_latent, kv_latent, attention_output, "
    "mlp_input, expert_input, expert_swiglu_input, shared_swiglu_input, dense_swiglu_input', "
    "policy: host}]"
)

ONE_GPU = (
    Case(name="one", world_size=1),
    Case(name="one-fp32", world_size=1, options=(FP32,), reference="one-fp32"),
    Case(name="one-all", world_size=1, options=(ALL_EXPERTS,), reference="one-all"),
    Case(name="one-again", world_size=1, same_as="one"),
    Case(name="one-reduce", world_size=1, options=(REDUCE,), same_as="one"),
    Case(name="one-reduce-gather", world_size=1, options=(REDUCE, GATHER), same_as="one"),
    Case(name="one-muon", world_size=1, options=MUON, reference="one-muon"),
    Case(name="one-muon-all", world_size=1, options=(*MUON, ALL_EXPERTS), reference="one-muon-all"),
    Case(name="one-muon-fp32", world_size=1, options=(*MUON, FP32), reference="one-muon-fp32"),
    Case(name="one-lean", world_size=1, options=(LEAN,), same_as="one"),
    Case(
        name="one-muon-lean",
        world_size=1,
        options=(*MUON, LEAN),
        reference="one-muon",
        same_as="one-muon",
    ),
    Case(name="one-fp8", world_size=1, options=(FP8,), gradient_bound=FP8_BOUND),
    Case(
        name="one-full",
        world_size=1,
        options=(FULL,),
        same_as="one-fp8",
        gradient_bound=FP8_BOUND,
    ),
    Case(name="one-host", world_size=1, options=(HOST,), same_as="one"),
)
TWO_GPUS = (
    Case(name="dp2-muon", world_size=2, options=MUON, reference="one-muon"),
    Case(
        name="dp2-muon-reduce-gather",
        world_size=2,
        options=(*MUON, REDUCE, GATHER),
        reference="one-muon",
        same_as="dp2-muon",
    ),
    Case(name="pp2-vpp2-muon", world_size=2, options=(*MUON, PP, VPP), reference="one-muon"),
    Case(name="cp2-muon", world_size=2, options=(*MUON, CP, ALL_EXPERTS), reference="one-muon-all"),
    Case(
        name="ep2-overlap-muon",
        world_size=2,
        options=(*MUON, EP, OVERLAP, DELAY),
        reference="one-muon",
        same_as="ep2-muon",
    ),
    Case(name="ep2-muon", world_size=2, options=(*MUON, EP), reference="one-muon"),
    *(
        Case(
            name=f"{name}-muon-fp32",
            world_size=2,
            options=(*MUON, FP32, *options),
            reference="one-muon-fp32",
        )
        for name, options in (("dp2", ()), ("ep2", (EP,)), ("tp2", (TP,)), ("pp2", (PP,)))
    ),
    Case(name="dp2", world_size=2),
    Case(name="dp2-reduce", world_size=2, options=(REDUCE,), same_as="dp2"),
    Case(name="dp2-reduce-gather", world_size=2, options=(REDUCE, GATHER), same_as="dp2"),
    Case(name="tp2", world_size=2, options=(TP, FP32), reference="one-fp32"),
    Case(name="tp2-ep2", world_size=2, options=(TP, EP, FP32), reference="one-fp32"),
    Case(name="tp2-bf16", world_size=2, options=(TP, ALL_EXPERTS), reference="one-all"),
    Case(name="cp2", world_size=2, options=(CP, ALL_EXPERTS), reference="one-all"),
    Case(
        name="tp2-ep2-lean",
        world_size=2,
        options=(TP, EP, FP32, LEAN),
        reference="one-fp32",
        same_as="tp2-ep2",
    ),
    Case(
        name="cp2-lean",
        world_size=2,
        options=(CP, ALL_EXPERTS, LEAN),
        reference="one-all",
        same_as="cp2",
    ),
    Case(name="pp2", world_size=2, options=(PP,)),
    Case(name="pp2-vpp2", world_size=2, options=(PP, VPP)),
    Case(
        name="pp2-vpp2-lean",
        world_size=2,
        options=(PP, VPP, LEAN),
        same_as="pp2-vpp2",
    ),
    Case(name="pp2-vpp2-fp8", world_size=2, options=(PP, VPP, FP8), gradient_bound=FP8_BOUND),
    Case(
        name="pp2-vpp2-full",
        world_size=2,
        options=(PP, VPP, FULL),
        same_as="pp2-vpp2-fp8",
        gradient_bound=FP8_BOUND,
    ),
    Case(name="pp2-vpp2-host", world_size=2, options=(PP, VPP, HOST), same_as="pp2-vpp2"),
    Case(name="ep2", world_size=2, options=(EP,)),
    Case(name="ep2-reduce-gather", world_size=2, options=(EP, REDUCE, GATHER), same_as="ep2"),
    Case(name="ep2-lean", world_size=2, options=(EP, LEAN), same_as="ep2"),
    Case(
        name="ep2-lean-reduce-gather",
        world_size=2,
        options=(EP, LEAN, REDUCE, GATHER),
        same_as="ep2",
    ),
    Case(name="ep2-fp8", world_size=2, options=(EP, FP8), gradient_bound=FP8_BOUND),
    Case(name="ep2-overlap", world_size=2, options=(EP, OVERLAP), same_as="ep2"),
    Case(name="ep2-overlap-delay", world_size=2, options=(EP, OVERLAP, DELAY), same_as="ep2"),
    Case(
        name="ep2-overlap-delay-reduce-gather",
        world_size=2,
        options=(EP, OVERLAP, DELAY, REDUCE, GATHER),
        same_as="ep2",
    ),
    Case(
        name="ep2-overlap-delay-lean",
        world_size=2,
        options=(EP, OVERLAP, DELAY, LEAN),
        same_as="ep2",
    ),
    Case(
        name="ep2-overlap-delay-fp8",
        world_size=2,
        options=(EP, OVERLAP, DELAY, FP8),
        same_as="ep2-fp8",
        gradient_bound=FP8_BOUND,
    ),
)
