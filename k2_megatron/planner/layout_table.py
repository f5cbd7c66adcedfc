# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which layers every pipeline rank has, and how long they take."""

from __future__ import annotations

from k2_megatron.planner.plan import Plan
from k2_megatron.planner.stage_times import stage_times
from k2_megatron.planner.text import table

_WIDTH = 60


def layout_table(plan: Plan) -> str:
    """Every rank's chunks, and its time for a micro-batch, forward and backward."""
    job = plan.job
    seconds = [
        sum(stage_times(job, stage).total for stage in job.layout.chunks(rank))
        for rank in range(job.degrees.pipeline)
    ]
    rows = [("rank", "chunks", "layers", "ms", "of slowest")]
    for rank, one in enumerate(seconds):
        stages = job.layout.chunks(rank)
        chunks = " | ".join(str(stage) for stage in stages)
        rows.append(
            (
                str(rank),
                chunks if len(chunks) <= _WIDTH else chunks[: _WIDTH - 3] + "...",
                str(sum(len(stage.layers) for stage in stages)),
                f"{1000 * one:.1f}",
                f"{100 * one / max(seconds):.0f} %",
            )
        )
    return table(rows, left=2)
