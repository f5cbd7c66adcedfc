# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Planned peak memory beside what benchmarks/planned_memory.py measured on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from k2_megatron.config.loader import load_config
from k2_megatron.planner.job import job_of
from k2_megatron.planner.plan import make_plan
from tests.planner.planner_helpers import GIB

SLICE = Path(__file__).parents[2] / "examples" / "configs" / "k2-slice-h100.yaml"

# Layers, sequences of a micro-batch, their length, preset, optimizer, GiB; one H100, 2026-11-22,
# PyTorch 2.11, Transformer Engine 2.11.
MEASURED = [
    (1, 1, 4096, "none", "muonclip", 26.84),
    (2, 1, 4096, "none", "muonclip", 43.94),
    (2, 2, 4096, "none", "muonclip", 48.16),
    (2, 4, 2048, "none", "muonclip", 48.16),
    (1, 1, 8192, "none", "muonclip", 29.63),
]


@pytest.mark.parametrize(
    ("layers", "micro_batch", "sequence", "preset", "optimizer", "gib"), MEASURED
)
def test_planned_peak_is_within_two_percent_of_the_measured(
    layers: int, micro_batch: int, sequence: int, preset: str, optimizer: str, gib: float
) -> None:
    """5 % is the promise; 2 % is what the table's terms reach, so that a lost term is seen."""
    overrides = [
        f"model.num_layers={layers}",
        f"schedule.micro_batch_size={micro_batch}",
        f"schedule.seq_length={sequence}",
        f"schedule.global_batch_size={4 * micro_batch}",
        f"memory.preset={preset}",
        f"optimizer.type={optimizer}",
    ]
    job = job_of(load_config(SLICE, overrides), 1)
    (rank,) = make_plan(job, place_matrices=False).ranks
    assert rank.total_bytes / GIB == pytest.approx(gib, rel=0.02)
