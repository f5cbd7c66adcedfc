# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Activations that were away change no bit: copies late, poison where they were, in every layout.

Each run has steps of different numbers of micro-batches, growing and shrinking, and an evaluation
behind each step.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from k2_megatron.offload.slots import LAYERS_THAT_STAY
from k2_megatron.planner.offload import travel_plan
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))
BF16 = "precision.dtype=bf16"
OVERLAP = "parallel.overlap_moe_expert_parallel_comm=true"
STAGES = "parallel.pipeline_model_parallel_layout"
# What remains of the preset none, in host memory as it is.
HOST = (
    "memory.tensors=[{tensors: 'attention_input, query_latent, kv_latent, attention_output, "
    "mlp_input, expert_input, expert_swiglu_input, shared_swiglu_input, dense_swiglu_input', "
    "policy: host}]"
)

CASES = [
    (Layout(world_size=1), ("model.mtp_num_layers=1",)),
    (Layout(world_size=2, pp=2), (BF16, f"{STAGES}=Ett|tttL")),
    (Layout(world_size=2, pp=2, vpp=2), ("model.mtp_num_layers=1", f"{STAGES}=Et|t|t|ttmL")),
    (Layout(world_size=4, pp=4), (f"{STAGES}=Et|tt|t|tL",)),
    (Layout(world_size=4, pp=2, vpp=2, ep=2), (BF16, OVERLAP, f"{STAGES}=Et|t|t|ttL")),
    (Layout(world_size=4, tp=2, pp=2, vpp=2, ep=2), (BF16, f"{STAGES}=Et|t|t|ttL")),
]


@cache
def _train(
    layout: Layout, options: tuple[str, ...], *memory: str, delayed: bool = False
) -> list[dict[str, Any]]:
    return run_ranks(
        "tests.distributed.offload_jobs.train_varied",
        layout.world_size,
        config_path=CONFIG,
        overrides=[*layout.overrides(), *options, *memory],
        counts=[4, 2, 8] if layout.dp == 1 else [4, 2, 4],
        delayed=delayed,
    )


def _assert_equal(off: list[dict[str, Any]], on: list[dict[str, Any]]) -> None:
    for one, other in zip(off, on, strict=True):
        for name in ("losses", "norms", "valid"):
            assert one[name] == other[name], name
        pieces = zip(
            [*one["gradients"], one["parameters"]],
            [*other["gradients"], other["parameters"]],
            strict=True,
        )
        for left, right in pieces:
            for (key, *_, x), (other_key, *_, y) in zip(left, right, strict=True):
                assert key == other_key and torch.equal(x, y), key


@pytest.mark.parametrize(
    ("stages", "tensors"),
    [
        ("E|ttt|t|tL", "attention_input, mlp_input"),
        ("Et|tt|t|tL", "expert_input"),
        ("Et|tt|t|tL", "dense_swiglu_input"),
    ],
)
def test_ranks_without_anything_that_travels(stages: str, tensors: str) -> None:
    """The embedding alone, the dense layer alone, everything but the dense layer."""
    layout = Layout(world_size=4, pp=4)
    options = (f"{STAGES}={stages}", f"memory.tensors=[{{tensors: '{tensors}', policy: host}}]")
    on = _train(layout, options, delayed=True)
    _assert_equal(_train(layout, options[:1]), on)
    assert {rank["pool"] == 0 for rank in on} == {True, False}


@pytest.mark.parametrize(("layout", "options"), CASES, ids=str)
def test_k2_full_is_k2_bit_for_bit(layout: Layout, options: tuple[str, ...]) -> None:
    off = _train(layout, options, "memory.preset=k2")
    on = _train(layout, options, "memory.preset=k2-full", delayed=True)
    _assert_equal(off, on)
    first = on[0]["metrics"][2]
    assert first["offload/sent_bytes"] == first["offload/fetched_bytes"] > 0
    for rank in on:
        assert 0 <= rank["high_water"] <= rank["pool"]
        assert rank["metrics"][0].keys() == first.keys()
        # With experts divided over ranks, the router decides whether all finds room.
        assert layout.ep > 1 or all(not one["offload/stayed_bytes"] for one in rank["metrics"])


def test_layers_come_back_in_three_parts() -> None:
    """What the MLP reads first, the tokens of its experts, and what attention reads behind it."""
    layout, options = CASES[2]
    ranks = _train(layout, options, "memory.preset=k2-full", delayed=True)
    layers = ((1, 1), (1, 3))  # of each rank's chunks; MTP's is one
    for rank, (found, counts) in enumerate(zip(ranks, layers, strict=True)):
        expected = 0
        for num_microbatches in (4, 2, 8):
            plan = travel_plan(rank, 2, 2, num_microbatches, False, counts)
            expected += sum(3 * counts[chunk] for chunk, _ in plan.journeys)
            expected += sum(3 * (count - LAYERS_THAT_STAY) for count in plan.by_layer.values())
            # The first layer has no experts.
            expected -= sum(rank == chunk == 0 for chunk, _ in plan.journeys)
        assert found["fetches"] == expected > 0


@pytest.mark.parametrize("recompute", ["", "expert_swiglu_input"])
def test_host_without_fp8_is_keeping_bit_for_bit(recompute: str) -> None:
    """SwiGLU's input may be computed again from tokens that are on the host until then."""
    host = HOST
    if recompute:
        assert f"{recompute}, " in HOST
        host = HOST.replace(f"{recompute}, ", "")
        host = host.replace("]", f", {{tensors: '{recompute}', policy: recompute}}]")
    for layout, options in (CASES[0], CASES[2]):
        _assert_equal(_train(layout, options), _train(layout, options, host, delayed=True))


def test_plain_copies_and_less_room() -> None:
    """With room for a part the rest stays; where there is none, nothing travels."""
    layout, options = CASES[2]
    off = _train(layout, options, "memory.preset=k2")
    on = _train(layout, options, "memory.preset=k2-full", "memory.host_budget='60%, 0%'")
    _assert_equal(off, on)
    most = _train(layout, options, "memory.preset=k2-full", delayed=True)[0]["metrics"][2]
    part = on[0]["metrics"][2]
    assert 0 < part["offload/sent_bytes"] < 0.7 * most["offload/sent_bytes"]
    assert part["offload/stayed_bytes"] > 0 and part["offload/wait_in_seconds"] > 0
    assert on[1]["pool"] == on[1]["high_water"] == 0 < on[0]["high_water"]


def test_pool_is_the_planners_and_gets_full() -> None:
    """With all experts on each rank the router moves nothing: what is used is what was planned.

    But for what alignment takes: at most 512 bytes of each of a few tensors of each layer.
    """
    layout = Layout(world_size=2, pp=2, vpp=2)
    alike = ("model.num_layers=4", "model.first_k_dense_replace=0", f"{STAGES}=Et|t|t|tL")
    options = (*alike, BF16, "schedule.seq_length=128")
    for rank in _train(layout, options, "memory.preset=k2-full"):
        assert rank["pool"] == rank["planned"] > 0
        assert 0.95 * rank["pool"] < rank["high_water"] <= rank["pool"]
        assert all(not one["offload/stayed_bytes"] for one in rank["metrics"])
