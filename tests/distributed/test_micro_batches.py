# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of different numbers of micro-batches, with evaluation between them, in every schedule."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.distributed.equality import CONFIG, PARAMETER
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

# Also fewer than there are ranks, more than before, and as many as ranks.
JOB = "tests.distributed.pipeline_jobs.train_varying"
COUNTS = [4, 2, 8, 4, 2]


@cache
def one_process() -> dict[str, Any]:
    (found,) = run_ranks(JOB, 1, config_path=CONFIG, overrides=[], counts=COUNTS)
    return found


@pytest.mark.parametrize(
    "layout",
    [
        Layout(world_size=2, pp=2),
        Layout(world_size=2, pp=2, vpp=2),
        Layout(world_size=4, pp=4),
    ],
    ids=str,
)
def test_steps_of_other_sizes_equal_one_process(layout: Layout) -> None:
    one = one_process()
    ranks = run_ranks(
        JOB,
        layout.world_size,
        config_path=CONFIG,
        overrides=layout.overrides(),
        counts=COUNTS,
    )
    for result in ranks:
        for name in ("losses", "valid_losses"):
            assert result[name] == pytest.approx(one[name], rel=2e-6)
    shapes = one["shapes"]
    found = assemble([result["parameters"] for result in ranks], shapes)
    for key, matrix in assemble([one["parameters"]], shapes).items():
        torch.testing.assert_close(found[key], matrix, **PARAMETER, msg=lambda text: text)


def test_steps_of_other_sizes_with_overlap_are_bit_equal() -> None:
    """Expert communication overlapped and not, in bf16; every step another number."""
    layout = Layout(world_size=4, pp=2, vpp=2, ep=2)
    runs = [
        run_ranks(
            JOB,
            layout.world_size,
            config_path=CONFIG,
            overrides=[
                *layout.overrides(),
                "precision.dtype=bf16",
                "parallel.pipeline_model_parallel_layout='Et|tt|t|tL'",
                f"parallel.overlap_moe_expert_parallel_comm={overlap}",
            ],
            counts=[2, 4, 2, 4],
        )
        for overlap in ("false", "true")
    ]
    for off, on in zip(*runs, strict=True):
        assert (off["losses"], off["valid_losses"]) == (on["losses"], on["valid_losses"])
        for (key, *_, one), (_, *_, other) in zip(off["parameters"], on["parameters"], strict=True):
            assert torch.equal(one, other), key
