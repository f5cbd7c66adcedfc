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
        recompute: megatron-core's selective recomputation, which has no setting of ours.
    """

    name: str
    world_size: int
    options: tuple[str, ...] = ()
    reference: str = "one"
    same_as: str | None = None
    recompute: tuple[str, ...] = ()

    def job(self) -> dict[str, Any]:
        """The case as a job of tests/gpu/worker.py."""
        return {
            "name": self.name,
            "function": "train_recomputing",
            "kwargs": {
                "config_path": MEDIUM,
                "overrides": list(self.options),
                "num_steps": 3,
                "modules": list(self.recompute),
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
CORE_RECOMPUTE = ("layernorm", "mla_up_proj", "moe_act")

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
    Case(name="one-recompute", world_size=1, recompute=CORE_RECOMPUTE, same_as="one"),
    Case(name="one-recompute-moe", world_size=1, recompute=("moe",), same_as="one"),
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
    Case(name="pp2", world_size=2, options=(PP,)),
    Case(name="pp2-vpp2", world_size=2, options=(PP, VPP)),
    Case(name="pp2-vpp2-recompute", world_size=2, options=(PP, VPP), recompute=CORE_RECOMPUTE),
    Case(name="ep2", world_size=2, options=(EP,)),
    Case(name="ep2-reduce-gather", world_size=2, options=(EP, REDUCE, GATHER), same_as="ep2"),
    Case(
        name="ep2-recompute", world_size=2, options=(EP,), recompute=CORE_RECOMPUTE, same_as="ep2"
    ),
    Case(name="ep2-overlap", world_size=2, options=(EP, OVERLAP), same_as="ep2"),
    Case(name="ep2-overlap-delay", world_size=2, options=(EP, OVERLAP, DELAY), same_as="ep2"),
    Case(
        name="ep2-overlap-delay-reduce-gather",
        world_size=2,
        options=(EP, OVERLAP, DELAY, REDUCE, GATHER),
        same_as="ep2",
    ),
    Case(
        name="ep2-overlap-delay-recompute",
        world_size=2,
        options=(EP, OVERLAP, DELAY),
        recompute=CORE_RECOMPUTE,
        same_as="ep2",
    ),
)
