# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every layout computes what one process computes: loss, each gradient, parameters after steps."""

from __future__ import annotations

import pytest

from tests.distributed.equality import assert_equals_one_process
from tests.distributed.layouts import Layout, all_layouts

LAYOUTS = [
    layout
    for world_size in (2, 4, 8)
    for layout in all_layouts(world_size, num_layers=5, num_experts=8)
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layout_equals_one_process(layout: Layout) -> None:
    assert_equals_one_process(layout)
