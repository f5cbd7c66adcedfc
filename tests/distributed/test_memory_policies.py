# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Recomputing changes no bit in any layout; FP8 storage leaves forward alone, gradients within 6 %.

K2's tensors are 1 x 128 tiles of E4M3, three bits behind the point: a number is off by at most
2^-4, by 0.026 of its size on average. A gradient that is a sum of such numbers is off by as much,
and what flows back through several layers' SwiGLUs adds up. On random weights and text the largest
error of a matrix of the small model is 0.042; the bound leaves half as much again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))
FP8_BOUND = 0.06
BF16 = "precision.dtype=bf16"
OVERLAP = "parallel.overlap_moe_expert_parallel_comm=true"
# Where no layout is written, it follows the memory that the policies leave.
STAGES = "parallel.pipeline_model_parallel_layout"

CASES = [
    (Layout(world_size=1), ()),
    (Layout(world_size=1), ("schedule.micro_batch_size=2", BF16)),
    (Layout(world_size=1), ("model.q_lora_rank=null", "model.mtp_num_layers=1")),
    (Layout(world_size=2), ("parallel.overlap_grad_reduce=true",)),
    (Layout(world_size=2, tp=2, etp=2), ()),
    (Layout(world_size=2, pp=2, vpp=2), ("model.mtp_num_layers=1", f"{STAGES}=Et|t|t|ttmL")),
    (Layout(world_size=2, ep=2), ("parallel.moe_token_dispatcher_type=allgather",)),
    (Layout(world_size=2, ep=2), (BF16, OVERLAP)),
    (Layout(world_size=4, pp=2, vpp=2, ep=2), (BF16, OVERLAP, f"{STAGES}=Et|t|t|ttL")),
    (Layout(world_size=4, tp=2, pp=2, ep=2), (BF16, f"{STAGES}=Ett|tttL")),
]


@cache
def _train(layout: Layout, options: tuple[str, ...], *memory: str) -> list[dict[str, Any]]:
    overrides = [*layout.overrides(), *options, *memory]
    return run_ranks(
        "train", layout.world_size, config_path=CONFIG, overrides=overrides, num_steps=2
    )


def _pairs(
    name: str, one: dict[str, Any], other: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for (key, *_, left), (other_key, *_, right) in zip(one[name], other[name], strict=True):
        assert key == other_key
        yield key, left, right


@pytest.mark.parametrize(("layout", "options"), CASES, ids=str)
def test_recomputing_is_bit_equal(layout: Layout, options: tuple[str, ...]) -> None:
    for off, on in zip(
        _train(layout, options), _train(layout, options, "memory.preset=k2-lean"), strict=True
    ):
        assert off["losses"] == on["losses"]
        assert off["grad_norms"] == on["grad_norms"]
        for name in ("gradients", "parameters"):
            for key, one, other in _pairs(name, off, on):
                assert torch.equal(one, other), f"{name} {key}"


@pytest.mark.parametrize(("layout", "options"), CASES, ids=str)
def test_fp8_leaves_forward_alone(layout: Layout, options: tuple[str, ...]) -> None:
    for off, on in zip(
        _train(layout, options), _train(layout, options, "memory.preset=k2"), strict=True
    ):
        assert off["losses"][0] == on["losses"][0]
        different = 0
        for key, one, other in _pairs("gradients", off, on):
            error = float((one - other).norm() / one.norm().clamp(min=1e-12))
            assert error < FP8_BOUND, key
            different += error > 0
        assert different, "nothing was rounded"


def test_evaluation_between_steps_changes_nothing() -> None:
    """Evaluation runs the same layers without gradients: nothing is emptied, nothing left over."""
    runs = [
        run_ranks(
            "train_with_evaluation",
            1,
            config_path=CONFIG,
            overrides=[f"memory.preset={preset}"],
            evaluations=count,
        )[0]
        for preset, count in (("none", 2), ("k2-lean", 2), ("k2-lean", 0))
    ]
    none, evaluated, not_evaluated = runs
    assert evaluated == none
    assert evaluated["losses"] == not_evaluated["losses"]


@pytest.mark.parametrize("preset", ["none", "k2-lean", "k2-full"])
@pytest.mark.parametrize("option", [OVERLAP, "parallel.moe_token_dispatcher_type=allgather"])
def test_nothing_outlives_the_passes(preset: str, option: str) -> None:
    """Neither a stage's last input nor its gradient is there while the optimizer steps."""
    layout = Layout(world_size=4, pp=2, vpp=2, ep=2)
    options = (*layout.overrides(), f"{STAGES}=Et|t|t|ttL", f"memory.preset={preset}")
    left = run_ranks(
        "tests.distributed.memory_jobs.left_behind",
        4,
        config_path=CONFIG,
        overrides=[*options, BF16, option, "schedule.seq_length=128"],
    )
    assert left == [[]] * 4


def test_layers_and_stages_apart() -> None:
    """Other policies in some layers, on some stages; what is only rebuilt stays bit-equal."""
    layout = Layout(world_size=2, pp=2)
    stages = f"{STAGES}=Ett|tttL"
    changes = (
        "{tensors: expert_swiglu_output, policy: keep, stages: '1'}",
        "{tensors: 'expert_input, expert_swiglu_input', policy: keep, layers: '2-3'}",
        "{tensors: expert_input, policy: keep, layers: '4'}",
        "{tensors: expert_swiglu_input, policy: keep, layers: '1'}",
        "{tensors: attention_norm_output, policy: keep, layers: '0, 4'}",
    )
    off = _train(layout, (stages,))
    on = _train(
        layout, (stages,), "memory.preset=k2-lean", f"memory.tensors=[{', '.join(changes)}]"
    )
    for one, other in zip(off, on, strict=True):
        assert one["losses"] == other["losses"]
        for key, left, right in _pairs("parameters", one, other):
            assert torch.equal(left, right), key


def test_experts_equal_a_plain_program_that_rounds_by_hand() -> None:
    """Rounded numbers are in the up-projections' weight gradients and in SwiGLU's backward alone.

    SwiGLU's backward includes what it rebuilds, the input of the down-projections' weight
    gradients. Same operations in the same order but for the sums over rows, whose gradients go
    through a fp32 buffer: equal bit for bit.
    """
    (result,) = run_ranks(
        "tests.distributed.memory_jobs.experts_and_plain_program",
        1,
        config_path=CONFIG,
        overrides=[],
    )
    assert result["emptied"] == 0
    found, plain, exact = result["found"], result["plain"], result["exact"]
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(found[name], value), name
    assert torch.equal(found["output"], exact["output"])
    for name in ("tokens", "probs", "up 2", "down 2"):
        error = float((found[name] - exact[name]).norm() / exact[name].norm())
        assert 0.005 < error < FP8_BOUND, name
