# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every layout computes what one process computes: loss, each gradient, parameters after steps."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.distributed.equality import CONFIG, GRADIENT, assert_equals_one_process
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout, all_layouts

LAYOUTS = [
    layout
    for world_size in (2, 4, 8)
    for layout in all_layouts(world_size, num_layers=5, num_experts=8)
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layout_equals_one_process(layout: Layout) -> None:
    assert_equals_one_process(layout)


@pytest.mark.parametrize(
    "layout",
    [Layout(world_size=2), Layout(world_size=2, pp=2), Layout(world_size=2, pp=2, vpp=2)],
    ids=str,
)
def test_bf16_equals_one_process(layout: Layout) -> None:
    """Data and pipeline parallelism round no activation otherwise, so the first step is the same.

    Gradients are summed in fp32 in another order; bf16 weights then differ by one rounding (2^-8)
    where that falls on an edge.
    """
    bf16 = ["precision.dtype=bf16"]
    runs = [
        run_ranks("train", size, config_path=CONFIG, overrides=overrides, num_steps=1)
        for size, overrides in ((1, bf16), (layout.world_size, [*layout.overrides(), *bf16]))
    ]
    (one,), ranks = runs
    shapes = one["shapes"]
    for result in ranks:
        assert result["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert result["grad_norms"] == pytest.approx(one["grad_norms"], rel=1e-5)
        for layer, loads in result["loads"].items():
            assert loads == one["loads"][layer]
    for name, tolerance in (("gradients", GRADIENT), ("parameters", {"rtol": 2**-7, "atol": 1e-4})):
        found = assemble([result[name] for result in ranks], shapes)
        for key, matrix in assemble([one[name]], shapes).items():
            torch.testing.assert_close(found[key], matrix, **tolerance)
