# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""N steps are N/2 steps, a save, a new process, a resume and N/2 more: bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))

LAYOUTS = [
    Layout(world_size=1),
    Layout(world_size=2),
    Layout(world_size=2, pp=2, vpp=2),
    Layout(world_size=2, tp=2, ep=2),
    Layout(world_size=4, pp=2, ep=2),
]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_resume_equals_not_stopping(layout: Layout, dtype: str, tmp_path: Path) -> None:
    options = {
        "config_path": CONFIG,
        "overrides": [
            *layout.overrides(),
            f"precision.dtype={dtype}",
            f"run.folder={tmp_path}",
            # The default, with which a wrong step count of AdamW shows most.
            "optimizer.adam_eps=1.0e-8",
        ],
    }
    whole = run_ranks("train_and_save", layout.world_size, first=1, last=6, save=False, **options)
    run_ranks("train_and_save", layout.world_size, first=1, last=3, save=True, **options)
    resumed = run_ranks("train_and_save", layout.world_size, first=4, last=6, save=False, **options)
    for one, other in zip(whole, resumed, strict=True):
        assert one["losses"][3:] == other["losses"]
        assert one["biases"] == other["biases"]
        for (key, rows, cols, values), again in zip(
            one["parameters"], other["parameters"], strict=True
        ):
            assert (key, rows, cols) == again[:3]
            assert torch.equal(values, again[3]), f"{key} {rows} {cols}"
