# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Overlapped expert communication reorders work and changes no bit of its result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))


STAGES = "parallel.pipeline_model_parallel_layout="
PP2_VPP2_EP2 = Layout(world_size=4, pp=2, vpp=2, ep=2)
# The stages are named: where layers go by themselves depends on what is overlapped.
EVEN = f"{STAGES}'Et|tt|t|tL'"
CASES = [
    (Layout(world_size=2, ep=2), ()),
    (PP2_VPP2_EP2, (EVEN,)),
    (Layout(world_size=4, tp=2, pp=2, vpp=2, ep=2), (EVEN,)),
    # Stages without a layer, and one that is empty; the dense layer by itself.
    (PP2_VPP2_EP2, (f"{STAGES}'E|ttt||ttL'",)),
    (PP2_VPP2_EP2, (f"{STAGES}'Et|ttt|t|L'",)),
    # As many micro-batches as ranks, 2: everything is warm-up. And one without a pipeline.
    (PP2_VPP2_EP2, (EVEN, "schedule.global_batch_size=4")),
    (Layout(world_size=2, ep=2), ("schedule.global_batch_size=2",)),
    (PP2_VPP2_EP2, (f"{STAGES}'Et|tt|t|tmL'", "model.mtp_num_layers=1")),
    (Layout(world_size=8, pp=4, vpp=2, ep=2), (f"{STAGES}'E|t|t|t|t|t||L'",)),
]


@pytest.mark.parametrize(("layout", "settings"), CASES, ids=str)
def test_overlap_is_bit_equal(layout: Layout, settings: tuple[str, ...]) -> None:
    runs = []
    for overlap in ("false", "true"):
        overrides = [
            *layout.overrides(),
            *settings,
            "precision.dtype=bf16",
            f"parallel.overlap_moe_expert_parallel_comm={overlap}",
        ]
        options = {"config_path": CONFIG, "overrides": overrides, "num_steps": 3}
        runs.append(run_ranks("train", layout.world_size, **options))
    for off, on in zip(*runs, strict=True):
        assert off["losses"] == on["losses"]
        assert off["grad_norms"] == on["grad_norms"]
        for name in ("gradients", "parameters"):
            for (key, *_, one), (other_key, *_, other) in zip(off[name], on[name], strict=True):
                assert key == other_key
                assert torch.equal(one, other), f"{name} {key}"
