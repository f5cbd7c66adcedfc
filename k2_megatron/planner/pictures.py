# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a plan as SVG: memory bars, and the schedule over time."""

from __future__ import annotations

from k2_megatron.planner.estimate import stage_forward_flops
from k2_megatron.planner.plan import Plan, RankPlan
from k2_megatron.planner.schedule import Bar, timeline

GIB = 2**30
SEGMENTS = (
    ("weights", "#4c78a8"),
    ("gradients", "#72b7b2"),
    ("optimizer state", "#b279a2"),
    ("activations", "#f58518"),
    ("work", "#bab0ac"),
)
_WIDTH, _LEFT, _RIGHT = 1000, 64, 76
_FORWARD = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
_BACKWARD = ("#fdd0a2", "#fdae6b", "#fd8d3c", "#e6550d", "#a63603", "#7f2704")


def memory_picture(plan: Plan) -> str:
    """A stacked bar for each pipeline rank, with the line up to which memory may be filled."""
    scale = max(plan.peak_bytes, plan.job.gpu.memory_bytes) * 1.02
    room = _WIDTH - _LEFT - _RIGHT
    row = 26
    height = row * len(plan.ranks) + 44
    parts = [_open(height)]
    for index, rank in enumerate(plan.ranks):
        top, left = 24 + index * row, float(_LEFT)
        parts.append(_text(_LEFT - 8, top + 15, f"rank {rank.pipeline_rank}", anchor="end"))
        for (name, color), size in zip(SEGMENTS, _sizes(rank), strict=True):
            width = size / scale * room
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{row - 6}" '
                f'fill="{color}"><title>{name}: {size / GIB:.2f} GiB</title></rect>'
            )
            if width > 34:
                label = f"{size / GIB:.1f}"
                parts.append(_text(left + width / 2, top + 15, label, anchor="middle", white=True))
            left += width
        parts.append(_text(left + 6, top + 15, f"{rank.total_bytes / GIB:.1f} GiB"))
    line = _LEFT + plan.usable_bytes / scale * room
    bottom = 24 + row * len(plan.ranks)
    parts.append(
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="18" y2="{bottom}" stroke="#c0392b" '
        'stroke-width="2" stroke-dasharray="6 4"/>'
    )
    label = f"usable on one {plan.job.gpu.name}: {plan.usable_bytes / GIB:.1f} GiB"
    parts.append(_text(line, 12, label, anchor="end" if line > _WIDTH / 2 else "start"))
    return "\n".join([*parts, "</svg>"])


def schedule_picture(plan: Plan) -> tuple[str, int]:
    """Every rank's operations over time, and how many micro-batches are shown."""
    degrees = plan.job.degrees
    pipeline, virtual = degrees.pipeline, degrees.virtual
    wanted = pipeline * (2 if virtual == 1 or pipeline > 8 else 3)
    shown = min(plan.job.sizes.num_microbatches, max(wanted, 4))
    overlap = plan.job.config.parallel.overlap_moe_expert_parallel_comm
    costs = [stage_forward_flops(plan.job, stage) for stage in plan.job.layout.stages]
    ranks = timeline(pipeline, virtual, shown, overlap, costs, [2 * cost for cost in costs])
    end = max(bars[-1].end for bars in ranks)
    row = 24 if pipeline <= 16 else 14
    parts = [_open(row * pipeline + 8)]
    for index, bars in enumerate(ranks):
        top = 4 + index * row
        parts.append(_text(_LEFT - 8, top + row / 2 + 4, f"rank {index}", anchor="end"))
        parts += [_bar(bar, top, row - 3, end, virtual) for bar in bars]
    return "\n".join([*parts, "</svg>"]), shown


def _bar(bar: Bar, top: float, height: int, end: float, virtual: int) -> str:
    room = _WIDTH - _LEFT - 8
    left, width = _LEFT + bar.begin / end * room, (bar.end - bar.begin) / end * room
    one = bar.operation
    colors = _FORWARD if one.forward else _BACKWARD
    shade = 1 if virtual == 1 else round(one.chunk * (len(colors) - 1) / (virtual - 1))
    kind = "forward" if one.forward else "backward"
    text = (
        f'<rect x="{left:.2f}" y="{top}" width="{max(width - 0.4, 0.3):.2f}" height="{height}" '
        f'fill="{colors[shade]}"><title>{kind} of micro-batch {one.micro_batch}, '
        f"chunk {one.chunk}</title></rect>"
    )
    if width > 7 * len(str(one.micro_batch)) and height > 12:
        label = str(one.micro_batch)
        text += _text(
            left + width / 2, top + height / 2 + 4, label, anchor="middle", white=shade > 2
        )
    return text


def _sizes(rank: RankPlan) -> tuple[float, ...]:
    return (
        rank.states.parameter_bytes,
        rank.states.gradient_bytes,
        rank.optimizer_bytes,
        rank.activation_bytes,
        rank.workspace_bytes,
    )


def _open(height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        'font-family="system-ui, sans-serif" font-size="11">'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", white: bool = False) -> str:
    color = "#ffffff" if white else "#1c2733"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'
