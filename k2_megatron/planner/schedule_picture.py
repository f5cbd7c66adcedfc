# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The schedule as SVG: what every pipeline rank does when, and one slot of one GPU enlarged."""

from __future__ import annotations

from dataclasses import dataclass

from k2_megatron.planner.lanes import COMMUNICATION, COMPUTE, COPIES, exposed_seconds, slot
from k2_megatron.planner.offload import travel_plan
from k2_megatron.planner.plan import Plan
from k2_megatron.planner.schedule import Bar, timeline
from k2_megatron.planner.stage_times import StageTimes, stage_times
from k2_megatron.planner.svg import INK, NOTE, box, boxes, opening, text

_LEFT, _RIGHT, _TOP = 88, 12, 70
_FORWARD = ("#b5d4ea", "#85b8dc", "#559bcb", "#2f78b3")
_BACKWARD = ("#fdd9b5", "#fdb777", "#f8923f", "#d96b16")
_COLORS = {
    "forward": _FORWARD[1],
    "backward": _BACKWARD[1],
    "weight gradient": "#74a65a",
    "all-to-all": "#9467bd",
    "pipeline": "#d62728",
    "offload": "#8c8c8c",
}


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where the timeline lies.

    Attributes:
        width: of the whole picture.
        end: seconds that it shows.
        bar: height of a rank's computation; its lanes lie below, of height `lane` each.
        num_lanes: lanes below a bar.
    """

    width: float
    end: float
    bar: float
    lane: float
    num_lanes: int

    @property
    def row(self) -> float:
        """Height of one rank."""
        return self.bar + self.lane * self.num_lanes + 5

    def x(self, seconds: float) -> float:
        """Where a moment lies."""
        return _LEFT + seconds / self.end * (self.width - _LEFT - _RIGHT)


def schedule_file(plan: Plan) -> str:
    """The picture as a file of its own."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{schedule_picture(plan)}\n'


def schedule_picture(plan: Plan) -> str:
    """Timeline of all ranks for the first micro-batches of a step, legend, and the slot."""
    degrees = plan.job.degrees
    pipeline, virtual = degrees.pipeline, degrees.virtual
    times = [stage_times(plan.job, stage) for stage in plan.job.layout.stages]
    shown = _shown(plan)
    ranks = timeline(
        pipeline,
        virtual,
        shown,
        plan.job.config.parallel.overlap_moe_expert_parallel_comm,
        [one.forward for one in times],
        [one.backward for one in times],
        times[0].send,
    )
    lanes = _lanes(times)
    frame = _Frame(
        width=min(2400.0, max(1000.0, 13.0 * 2 * shown * virtual)),
        end=max(bars[-1].end for bars in ranks),
        bar=20 if pipeline <= 8 else 13,
        lane=4 if pipeline <= 8 else 3,
        num_lanes=len(lanes),
    )
    below = _TOP + frame.row * pipeline + 8
    parts = [opening(frame.width, below + 178)]
    parts.append(f'<rect width="100%" height="{below + 178:.0f}" fill="#ffffff"/>')
    parts += _head(plan, shown, lanes)
    for index, bars in enumerate(ranks):
        parts += _row(plan, frame, index, bars, times, lanes)
    parts.append(_axis(frame, below))
    parts += _enlarged(plan, frame.width, below + 36)
    return "\n".join([*parts, "</svg>"])


def _shown(plan: Plan) -> int:
    """Micro-batches that show the warm-up, some of the steady state and the end."""
    degrees = plan.job.degrees
    wanted = degrees.pipeline * (2 if degrees.virtual == 1 or degrees.pipeline > 8 else 3)
    return min(plan.job.sizes.num_microbatches, max(wanted, 4))


def _lanes(times: list[StageTimes]) -> list[str]:
    """The lanes that have anything in them."""
    found = []
    if any(one.all_to_all for one in times):
        found.append("all-to-all")
    if times[0].send:
        found.append("pipeline")
    if any(one.offload for one in times):
        found.append("offload")
    return found


def _head(plan: Plan, shown: int, lanes: list[str]) -> list[str]:
    degrees, parallel = plan.job.degrees, plan.job.config.parallel
    overlap = parallel.overlap_moe_expert_parallel_comm
    kind = "1F1B" if degrees.virtual == 1 else f"interleaved 1F1B, {degrees.virtual} chunks a rank"
    kind = "one stage" if degrees.pipeline == 1 else kind
    parts = [kind]
    if overlap:
        parts.append("one more warm-up forward, expert all-to-all under the other micro-batch")
    if parallel.delay_wgrad_compute:
        parts.append("weight gradients delayed")
    total = plan.job.sizes.num_microbatches
    bubble = 100 * plan.estimate.bubble
    found = [
        text(8, 16, f"PP {degrees.pipeline}: " + ", ".join(parts), size=13),
        text(
            8,
            33,
            f"Bubble: {bubble:.1f} % of a step of {total} micro-batches. Drawn: {shown} of them, "
            "as they would run alone; white is the bubble. An estimate.",
            color=NOTE,
        ),
    ]
    names = ["forward", "backward"]
    names += ["weight gradient"] * parallel.delay_wgrad_compute
    labels = {"forward": "forward (darker: later chunk)", "backward": "backward"}
    labels |= {name: f"lane below: {name}" for name in lanes}
    labels["weight gradient"] = "weight gradient (end of backward)"
    left = 8.0
    for name in [*names, *lanes]:
        found.append(box(left, 44, 12, 12, _COLORS[name]))
        found.append(text(left + 17, 54, labels[name]))
        left += 36 + 6.2 * len(labels[name])
    found.append(text(left, 54, "number: micro-batch", color=NOTE))
    return found


def _row(
    plan: Plan, frame: _Frame, rank: int, bars: list[Bar], times: list[StageTimes], lanes: list[str]
) -> list[str]:
    """One rank: its bars, and its lanes below them."""
    degrees, top = plan.job.degrees, _TOP + rank * frame.row
    found = [text(_LEFT - 8, top + frame.bar - 3, f"rank {rank}", anchor="end")]
    delayed = plan.job.config.parallel.delay_wgrad_compute
    filled: dict[str, list[tuple[float, float]]] = {name: [] for name in lanes}
    shown = len(bars) // (2 * degrees.virtual)
    overlap = plan.job.config.parallel.overlap_moe_expert_parallel_comm
    travel = travel_plan(rank, degrees.pipeline, degrees.virtual, shown, overlap).journeys
    for index, bar in enumerate(bars):
        stage = bar.operation.chunk * degrees.pipeline + rank
        one = times[stage]
        found += _bar(frame, bar, top, degrees.virtual, one if delayed else None)
        other = bars[index + 1] if bar.operation.forward and index + 1 < len(bars) else None
        under = one.exposed < 1 and other is not None and not other.operation.forward
        stays = (bar.operation.chunk, bar.operation.micro_batch) not in travel
        for name, begin, length in _messages(bar, one, under=under):
            if name in filled and length > 0 and not (name == "offload" and stays):
                x = frame.x(begin)
                filled[name].append((x, max(0.6, frame.x(begin + length) - x)))
    for place, name in enumerate(lanes):
        y = top + frame.bar + 1 + place * frame.lane
        found.append(boxes(filled[name], y, frame.lane - 1, _COLORS[name]))
    return found


def _bar(
    frame: _Frame, bar: Bar, top: float, virtual: int, delayed: StageTimes | None
) -> list[str]:
    one, x, end = bar.operation, frame.x(bar.begin), frame.x(bar.end)
    colors = _FORWARD if one.forward else _BACKWARD
    shade = 1 if virtual == 1 else round(one.chunk * (len(colors) - 1) / max(virtual - 1, 2))
    kind = "forward" if one.forward else "backward"
    title = f"{kind} of micro-batch {one.micro_batch}, chunk {one.chunk}"
    width = max(end - x - 0.6, 0.3)
    found = [box(x, top, width, frame.bar, colors[shade], title=title)]
    if delayed is not None and not one.forward and delayed.backward:
        part = width * delayed.weight_gradient / delayed.backward
        found.append(box(x + width - part, top, part, frame.bar, _COLORS["weight gradient"]))
        width -= part
    label = str(one.micro_batch)
    if width > 5.4 * len(label):
        color = "#ffffff" if shade > 2 and one.forward else INK
        middle = x + width / 2
        found.append(text(middle, top + frame.bar - 4, label, anchor="middle", color=color, size=9))
    return found


def _messages(bar: Bar, times: StageTimes, *, under: bool) -> list[tuple[str, float, float]]:
    """(lane, begin, seconds) of what travels with an operation.

    Dispatch and combine of all layers are drawn as two pieces. Where they are overlapped they run
    under this operation and the one it is paired with.
    """
    length, once = bar.end - bar.begin, times.all_to_all / 2
    quarter = bar.begin + 0.25 * length
    half = bar.begin + (1.0 if under else 0.6) * length
    found = [
        ("all-to-all", quarter, min(once, 0.35 * length) if times.exposed == 1 else once),
        ("all-to-all", max(half, quarter + once), once),
        ("pipeline", bar.end, times.send),
    ]
    if times.offload:
        begin = bar.end if bar.operation.forward else bar.begin - times.offload
        found.append(("offload", max(0.0, begin), times.offload))
    return found


def _axis(frame: _Frame, y: float) -> str:
    """A bar of round length that tells the scale."""
    step = 1.0
    while step > frame.end / 5:
        step /= 10
    for factor in (5, 2):
        if factor * step <= frame.end / 5:
            step *= factor
            break
    left, right = frame.x(0), frame.x(step)
    words = f"{step:.3g} s" if step >= 1 else f"{1000 * step:.3g} ms"
    return box(left, y, right - left, 2, INK) + text(right + 6, y + 5, words)


def _enlarged(plan: Plan, width: float, top: float) -> list[str]:
    """The lanes of one slot."""
    pieces = slot(plan.job)
    end = max(piece.end for piece in pieces)
    room = min(width, 1200.0) - _LEFT - _RIGHT - 20
    exposed = 1000 * exposed_seconds(pieces)
    overlap = plan.job.config.parallel.overlap_moe_expert_parallel_comm
    order = "forward of one micro-batch beside backward of another" if overlap else "one by one"
    parts = [
        text(
            8,
            top - 4,
            f"One layer on one GPU in the steady state, {order}: {1000 * end:.1f} ms, of which "
            f"{exposed:.1f} ms without computation.",
            color=NOTE,
        ),
        text(
            8,
            top + 11,
            "Attn attention, MLP feed-forward; F forward, B gradient of activations, W of weights; "
            "EP-D dispatch to experts, EP-C combine, PP pipeline transfer.",
            color=NOTE,
        ),
    ]
    used = [
        lane for lane in (COMPUTE, COMMUNICATION, COPIES) if any(p.lane == lane for p in pieces)
    ]
    for index, lane in enumerate(used):
        y = top + 22 + 34 * index
        parts.append(text(_LEFT - 4, y + 18, lane, anchor="end"))
        parts.append(box(_LEFT, y, room, 28, "#f0f2f4"))
        for piece in (piece for piece in pieces if piece.lane == lane):
            x, length = _LEFT + piece.begin / end * room, (piece.end - piece.begin) / end * room
            title = f"{piece.name}: {1000 * (piece.end - piece.begin):.2f} ms"
            parts.append(box(x, y, max(1.0, length - 1), 28, _COLORS[piece.kind], title=title))
            size = 11 if length > 6.4 * len(piece.name) else 9
            if length > 5.2 * len(piece.name):
                white = piece.kind in ("all-to-all", "pipeline", "offload", "weight gradient")
                color = "#ffffff" if white else INK
                middle = x + length / 2
                parts.append(
                    text(middle, y + 18, piece.name, anchor="middle", color=color, size=size)
                )
    return parts
