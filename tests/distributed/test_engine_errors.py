# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""megatron-core 0.16.1's silent errors: each is there without our mend and gone with it.

When one of these fails after an upgrade, upstream has changed: the mend can go. That the mended
layouts are right is test_layouts.py's to show.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.harness import run_ranks

CONFIG = str(Path(__file__).with_name("small.yaml"))
TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
VPP2 = "parallel.virtual_pipeline_model_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
DENSE = "model.first_k_dense_replace=5"


def run(overrides: list[str], world_size: int, mend: str = "", steps: int = 1) -> list[Any]:
    function, extra = "train", {}
    if mend:
        function, extra = "tests.distributed.unmended.train_without", {"mend": mend}
    options = {"config_path": CONFIG, "overrides": overrides, "num_steps": steps}
    return run_ranks(function, world_size, **options, **extra)


def gradient_of(ranks: list[Any], key: str) -> torch.Tensor:
    """A canonical matrix's gradient, later ranks' rectangles over earlier ones'."""
    full = torch.full(ranks[0]["shapes"][key], torch.nan)
    for result in ranks:
        for name, rows, cols, values in result["gradients"]:
            if name == key:
                full[slice(*rows), slice(*cols)] = values
    return full


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())


def test_cut_down_projections_lose_the_rotary_key_gradient() -> None:
    key = "layers.0.attention.kv_down.rope"
    right = gradient_of(run([], 1), key)
    broken = gradient_of(run([TP2], 2, mend="whole down-projections"), key)
    assert relative_error(broken, right) > 1e-2


def test_batched_sends_swap_messages_between_two_interleaved_stages() -> None:
    right = run([], 1)[0]
    layout = [PP2, VPP2]
    broken = run(layout, 2, mend="unbatched sends when interleaved")[0]
    assert abs(broken["losses"][0] - right["losses"][0]) > 1e-4


def test_outputs_freed_under_a_send_reach_the_next_stage_as_garbage() -> None:
    right = run([], 1)[0]
    broken = run([PP2, VPP2], 2, mend="kept pipeline outputs", steps=3)[0]
    gone_wrong = [
        abs(one - other) > 1e-4 or one != one
        for one, other in zip(
            broken["losses"] + broken["grad_norms"],
            right["losses"] + run([], 1, steps=3)[0]["grad_norms"],
            strict=False,
        )
    ]
    assert any(gone_wrong)


def test_experts_of_other_tensor_ranks_are_left_out_of_the_gradient_norm() -> None:
    right = run([], 1)[0]["grad_norms"][0]
    broken = run([TP2, EP2], 2, mend="marks of distinct parameters")[0]["grad_norms"][0]
    assert broken < 0.999 * right


def test_bf16_cannot_count_tokens() -> None:
    overrides = ["precision.dtype=bf16", "schedule.seq_length=200", "schedule.micro_batch_size=8"]
    routed = 8 * 200 * 2
    for mend, exact in (("", True), ("router state in fp32", False)):
        loads = run(overrides, 1, mend=mend)[0]["loads"]
        assert len(loads) == 4
        assert all((sum(load) == routed) == exact for load in loads.values()), (mend, loads)


def test_tensor_parallel_without_sequence_parallel_has_wrong_latent_norm_gradients() -> None:
    key = "layers.0.attention.q_norm"
    right = gradient_of(run([DENSE], 1, mend="validation"), key)
    layout = [DENSE, TP2, "parallel.sequence_parallel=false"]
    broken = gradient_of(run(layout, 2, mend="validation"), key)
    # TP times too large, and a little off from the down-projections' errors before it.
    assert relative_error(broken, right) == pytest.approx(1.0, rel=0.01)


def test_whole_experts_on_tensor_ranks_miss_the_reduction_of_their_gradients() -> None:
    key = "layers.1.experts.0.gate"
    right = gradient_of(run([], 1), key)
    layout = [TP2, "parallel.expert_tensor_parallel_size=1"]
    broken = gradient_of(run(layout, 2, mend="validation"), key)
    assert relative_error(broken, right) > 1e-2


def test_one_expert_a_process_breaks_overlapped_expert_communication() -> None:
    overrides = [
        "model.num_experts=2",
        EP2,
        "precision.dtype=bf16",
        "parallel.overlap_moe_expert_parallel_comm=true",
    ]
    with pytest.raises(AssertionError, match="data is not allocated"):
        run(overrides, 2, mend="validation")


def test_output_discarding_checkpoint_needs_transformer_engine() -> None:
    """Its default asks for FP8's state; without that, it reads a GPU's random state."""
    with pytest.raises(AssertionError, match="FP8GlobalStateManager"):
        run(["memory.preset=k2-lean"], 1, mend="output-discarding checkpoint")


@pytest.mark.parametrize(
    ("overrides", "multiplier"),
    [
        # multi_latent_attention.py:125 has YaRN's factor, 0.1 ln 32 + 1, in plain RoPE's scale too.
        ([], 1.0),
        (["model.rope_type=yarn"], (0.1 * math.log(32) + 1) ** 2),
    ],
    ids=["rope", "yarn"],
)
def test_softmax_scale_has_yarn_in_it_with_yarn_alone(
    overrides: list[str], multiplier: float
) -> None:
    (scale,) = run_ranks("softmax_scale", 1, config_path=CONFIG, overrides=overrides)
    assert scale == pytest.approx(multiplier / math.sqrt(16 + 8))
