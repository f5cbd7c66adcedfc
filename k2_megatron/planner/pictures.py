# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The memory of a plan as SVG."""

from __future__ import annotations

from k2_megatron.planner.hardware import GIB
from k2_megatron.planner.plan import Plan, RankPlan
from k2_megatron.planner.svg import opening, text

SEGMENTS = (
    ("weights", "#4c78a8"),
    ("gradients", "#72b7b2"),
    ("optimizer state", "#b279a2"),
    ("activations", "#f58518"),
    ("work", "#bab0ac"),
)
_WIDTH, _LEFT, _RIGHT = 1000, 64, 76


def memory_picture(plan: Plan) -> str:
    """A stacked bar for each pipeline rank, with the line up to which memory may be filled."""
    scale = max(plan.peak_bytes, plan.job.gpu.memory_bytes) * 1.02
    room = _WIDTH - _LEFT - _RIGHT
    row = 26
    height = row * len(plan.ranks) + 44
    parts = [opening(_WIDTH, height)]
    for index, rank in enumerate(plan.ranks):
        top, left = 24 + index * row, float(_LEFT)
        parts.append(text(_LEFT - 8, top + 15, f"rank {rank.pipeline_rank}", anchor="end"))
        for (name, color), size in zip(SEGMENTS, _sizes(rank), strict=True):
            width = size / scale * room
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{row - 6}" '
                f'fill="{color}"><title>{name}: {size / GIB:.2f} GiB</title></rect>'
            )
            if width > 34:
                label = f"{size / GIB:.1f}"
                parts.append(
                    text(left + width / 2, top + 15, label, anchor="middle", color="#ffffff")
                )
            left += width
        parts.append(text(left + 6, top + 15, f"{rank.total_bytes / GIB:.1f} GiB"))
    line = _LEFT + plan.usable_bytes / scale * room
    bottom = 24 + row * len(plan.ranks)
    parts.append(
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="18" y2="{bottom}" stroke="#c0392b" '
        'stroke-width="2" stroke-dasharray="6 4"/>'
    )
    label = f"usable on one {plan.job.gpu.name}: {plan.usable_bytes / GIB:.1f} GiB"
    parts.append(text(line, 12, label, anchor="end" if line > _WIDTH / 2 else "start"))
    return "\n".join([*parts, "</svg>"])


def _sizes(rank: RankPlan) -> tuple[float, ...]:
    return (
        rank.states.parameter_bytes,
        rank.states.gradient_bytes,
        rank.optimizer_bytes,
        rank.activation_bytes,
        rank.workspace_bytes,
    )
