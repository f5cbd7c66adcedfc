# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Sharded MuonClip is the plain rule on whole matrices, in every layout; and what it costs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.distributed.equality import CONFIG, GRADIENT
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout, all_layouts

NUM_STEPS = 5
MUON = (
    "optimizer.type=muonclip",
    # Low enough that some heads are hot in each of the steps, and never all.
    "optimizer.qk_clip_threshold=0.02",
)
# Gradients of another layout differ by 1e-6 of their norm (equality.py). Newton-Schulz multiplies
# what is small beside the largest singular value by up to 3.4445^5 = 485, so an update of RMS 0.2
# moves by 1e-4, times a rate of at most 2e-3 over five steps.
PARAMETER = {"rtol": 2e-5, "atol": 2e-6}

LAYOUTS = [
    layout
    for world_size in (1, 2, 4, 8)
    for layout in all_layouts(world_size, num_layers=5, num_experts=8)
]


@cache
def plain(*overrides: str) -> dict[str, Any]:
    """The plain rule's run on one process."""
    (result,) = run_ranks(
        "tests.distributed.plain_muonclip.train",
        1,
        config_path=CONFIG,
        overrides=[*MUON, *overrides],
        num_steps=NUM_STEPS,
    )
    return result


def sharded(
    layout: Layout, *overrides: str, num_steps: int = NUM_STEPS, batch_elements: int | None = None
) -> list[dict[str, Any]]:
    """The product's run in a layout."""
    return run_ranks(
        "tests.distributed.muon_jobs.train",
        layout.world_size,
        config_path=CONFIG,
        overrides=[*layout.overrides(), *MUON, *overrides],
        num_steps=num_steps,
        batch_elements=batch_elements,
    )


def assert_equal(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Norms, hot heads and all parameters."""
    for result in ranks:
        assert result["grad_norms"] == pytest.approx(one["grad_norms"], rel=1e-5)
        clipped = sum(metrics["qk_clip/heads_clipped"] for metrics in result["metrics"])
        assert clipped == one["hot"]
    found = assemble([result["parameters"] for result in ranks], one["shapes"])
    for key, matrix in one["parameters"].items():
        torch.testing.assert_close(
            found[key], matrix, **PARAMETER, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layout_equals_the_plain_rule(layout: Layout) -> None:
    one = plain()
    heads = 5 * 4 * NUM_STEPS
    assert 0 < one["hot"] < heads
    ranks = sharded(layout)
    assert_equal(ranks, one)
    # Copies of a momentum, which tensor ranks hold, must be equal; `assemble` looks.
    shapes = {key: tuple(matrix.shape) for key, matrix in one["momenta"].items()}
    found = assemble([result["momenta"] for result in ranks], shapes)
    for key, matrix in one["momenta"].items():
        torch.testing.assert_close(found[key], matrix, **GRADIENT)
    # Each logical matrix once a step over all ranks, whatever is copied or cut.
    matrices = [shape for key, shape in one["shapes"].items() if shape[1] > 1]
    expected = sorted(shape for shape in matrices if shape != one["shapes"]["embedding"])
    seen = sorted(shape for result in ranks for shape in result["orthogonalised"])
    assert seen == sorted(expected * NUM_STEPS)
    # The bytes that travelled are the bytes reported.
    step = ranks[0]["metrics"][0]
    reported = step["muon/gather_bytes"] + step["muon/tensor_gather_bytes"]
    assert sum(sum(result["sent"]) for result in ranks) == reported * NUM_STEPS
    assert (step["muon/tensor_gather_bytes"] > 0) == (layout.tp > 1 or layout.etp > 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.muon_nesterov=false", "optimizer.clip_grad=0"),
        ("optimizer.muon_split_gate_up=false", "optimizer.muon_split_kv_down=false"),
        ("optimizer.muon_split_q_up=false", "optimizer.muon_split_kv_up=false"),
        ("optimizer.muon_per_head=true",),
        ("optimizer.muon_router=false", "optimizer.muon_ns_steps=3"),
        ("model.q_lora_rank=null", "optimizer.muon_ns_coefficients=[3.0, -3.2, 1.2]"),
        ("model.mtp_num_layers=1", "optimizer.qk_clip=observe"),
        ("model.mtp_num_layers=1", "optimizer.clip_grad=0.1", "optimizer.muon_update_rms=0.4"),
    ],
    ids=lambda overrides: ",".join(overrides).replace("optimizer.", ""),
)
def test_settings_equal_the_plain_rule(overrides: tuple[str, ...]) -> None:
    one = plain(*overrides)
    for layout in (Layout(world_size=1), Layout(world_size=4, tp=2, ep=2)):
        ranks = sharded(layout, *overrides)
        assert_equal(ranks, one)


@pytest.mark.parametrize(
    "layout", [Layout(world_size=4), Layout(world_size=4, tp=2, etp=2)], ids=str
)
def test_many_small_rounds_equal_the_plain_rule(layout: Layout) -> None:
    """Batches of one matrix and several rounds of communication."""
    ranks = sharded(layout, batch_elements=64)
    assert ranks[0]["rounds"] > 1
    assert_equal(ranks, plain())


@pytest.mark.parametrize(
    "layout", [Layout(world_size=4, ep=2), Layout(world_size=8, pp=2, vpp=2, ep=2)], ids=str
)
def test_overlapped_reduction_and_gather_change_nothing(layout: Layout) -> None:
    overlap = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
    assert_equal(sharded(layout, *overlap), plain())


def test_mtp_on_the_last_stage_equals_the_plain_rule() -> None:
    """Its embedding is a copy of the first stage's, which the norm must count once."""
    mtp = "model.mtp_num_layers=1"
    assert_equal(sharded(Layout(world_size=4, pp=2, tp=2, etp=2), mtp), plain(mtp))


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", 8), ("bf16", 6)])
def test_state_is_one_master_and_one_momentum_sharded(dtype: str, expected: int) -> None:
    """Bytes of each Muon parameter over all ranks, in a bf16 run."""
    options = ("precision.dtype=bf16", f"optimizer.muon_momentum_dtype={dtype}")
    for layout in (Layout(world_size=2), Layout(world_size=4, ep=2)):
        ranks = sharded(layout, *options, num_steps=1)
        shapes = ranks[0]["shapes"]
        tables = ("embedding", "output")
        count = sum(r * c for key, (r, c) in shapes.items() if c > 1 and key not in tables)
        assert sum(result["state_bytes"]["muon_elements"] for result in ranks) == count
        assert sum(result["state_bytes"]["muon_bytes"] for result in ranks) == expected * count


def test_bf16_run_follows_the_fp32_run() -> None:
    """Newton-Schulz, wire and weights in bf16: the first steps' losses and norms stay near.

    bf16 weights of some 0.02 are off by 2^-9 of themselves, and a norm is a sum over all of them.
    """
    layout = Layout(world_size=4, tp=2, etp=2)
    fp32, bf16 = (sharded(layout, f"precision.dtype={dtype}") for dtype in ("fp32", "bf16"))
    # After QK-Clip too the weights are the masters, rounded.
    assert bf16[0]["metrics"][-1]["qk_clip/heads_clipped"] > 0
    assert all(result["rounded"] for result in bf16)
    assert bf16[0]["grad_norms"] == pytest.approx(fp32[0]["grad_norms"], rel=2e-2)
    for kind, rms in bf16[0]["metrics"][-1].items():
        if kind.startswith("muon/update_rms/"):
            assert rms == pytest.approx(fp32[0]["metrics"][-1][kind], rel=2e-2), kind


def test_an_update_that_is_not_finite_ends_every_rank() -> None:
    layout = Layout(world_size=4, pp=2)
    texts = run_ranks(
        "tests.distributed.muon_jobs.train_with_a_spoilt_matrix",
        layout.world_size,
        config_path=CONFIG,
        overrides=[*layout.overrides(), *MUON],
    )
    assert len(set(texts)) == 1
    assert texts[0].startswith("updates of matrices are not finite after Newton-Schulz"), texts
    assert "muon/update_rms/" in texts[0]
