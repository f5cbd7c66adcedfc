# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The phases of a schedule for people: which one is planned, all as a table, the rate as a picture.

Of a run without phases there is nothing to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from k2_megatron.config.config import Config
from k2_megatron.config.learning_rate import courses_of, learning_rate
from k2_megatron.config.phases import CHANGED_SECTIONS, Phase, phases_of, runs_on
from k2_megatron.config.schedule import PhaseConfig
from k2_megatron.errors import UserError
from k2_megatron.planner.phase_peaks import PhasePeak
from k2_megatron.planner.svg import INK, NOTE, box, opening, text

_POINTS = 64  # of each phase's curve
_WIDTH, _LEFT, _RIGHT = 1000, 64, 20
_RATE, _BATCH = (28, 150), (176, 216)  # top and bottom of the two pictures
_LINE = "#08519c"


def phase_to_plan(config: Config, name: str | None) -> Phase:
    """The phase of a name, the first where none is given.

    Raises:
        UserError: there is none of this name.
    """
    phases = phases_of(config)
    if name is None:
        return phases[0]
    for phase in phases:
        if phase.name == name:
            return phase
    names = ", ".join(phase.name for phase in phases if phase.name)
    known = f"allowed: {names}" if names else "the configuration has no schedule.phases"
    raise UserError(f"--phase {name}: {known}")


def phases_text(config: Config) -> str:
    """One line for each phase; empty where there are none."""
    table = phases_of(config)
    if not config.schedule.phases:
        return ""
    rows = [("phase", "steps", "ends at", "tokens a step", "lr at its end", "* new processes")]
    courses = courses_of(config)
    for given, phase in zip(config.schedule.phases, table, strict=True):
        schedule = phase.config.schedule
        rows.append(
            (
                phase.name,
                f"{phase.num_steps:,}",
                tokens_text(phase.consumed_after(phase.last_step)[1]),
                f"{schedule.global_batch_size} x {schedule.seq_length}",
                f"{learning_rate(courses, phase.last_step):.2e} {given.lr_style:8}",
                _changes(given, phase, table),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True)]
            + [row[-1]]
        ).rstrip()
        for row in rows
    )


def phases_json(config: Config, peaks: Sequence[PhasePeak]) -> list[dict[str, Any]]:
    """The table as numbers; rates are those of the first and of the last step."""
    courses = courses_of(config)
    return [
        {
            "name": phase.name,
            "first_step": phase.first_step,
            "last_step": phase.last_step,
            "step_tokens": phase.step_tokens,
            "consumed_tokens": phase.consumed_after(phase.last_step)[1],
            "seq_length": phase.config.schedule.seq_length,
            "global_batch_size": phase.config.schedule.global_batch_size,
            "first_lr": learning_rate(courses, phase.first_step),
            "last_lr": learning_rate(courses, phase.last_step),
            "peak_bytes": peak.peak_bytes,
            "fits": peak.fits,
        }
        for phase, peak in zip(phases_of(config), peaks, strict=True)
        if phase.name
    ]


def phases_section(config: Config, fits: str) -> str:
    """A section of the plan's page: the table, learning rate and batch over tokens; or nothing.

    Args:
        fits: which phases fit, as text.
    """
    if not config.schedule.phases:
        return ""
    return "\n".join(
        [
            "<h2>Phases</h2>",
            _picture(config),
            '<p class="note">Learning rate (line) and tokens of a step (bars) over the tokens '
            "consumed. A dashed line: new processes.</p>",
            f"<pre>{escape(phases_text(config))}\n\n{escape(fits)}</pre>",
        ]
    )


def tokens_text(count: int) -> str:
    """A number of tokens in four characters and a unit: 33.55 B."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)


def _changes(given: PhaseConfig, phase: Phase, table: tuple[Phase, ...]) -> str:
    before = table[max(0, phase.index - 1)]
    mark = "" if runs_on(before.config, phase.config) else "* "
    keys = [
        f"{name} {_word(value)}"
        for section in CHANGED_SECTIONS
        for name, value in getattr(given, section).given
    ]
    return mark + ", ".join(keys)


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return f"of {len(value)}"
    return "null" if value is None else str(value)


def _picture(config: Config) -> str:
    table, courses = phases_of(config), courses_of(config)
    end = table[-1].consumed_after(table[-1].last_step)[1]
    room = _WIDTH - _LEFT - _RIGHT
    steps = [
        phase.first_step + (phase.num_steps - 1) * point // (_POINTS - 1)
        for phase in table
        for point in range(_POINTS)
    ]
    highest = max(learning_rate(courses, step) for step in steps) or 1.0
    largest = max(phase.step_tokens for phase in table)

    def x(tokens: int) -> float:
        return _LEFT + tokens / end * room

    def y(rate: float) -> float:
        return _RATE[1] - rate / highest * (_RATE[1] - _RATE[0])

    points = []
    for index, step in enumerate(steps):
        phase = table[index // _POINTS]
        place = x(phase.consumed_after(step)[1])
        points.append(f"{place:.1f},{y(learning_rate(courses, step)):.1f}")
    parts = [
        opening(_WIDTH, _BATCH[1] + 24),
        text(_LEFT - 8, _RATE[0] + 4, f"{highest:.1e}", anchor="end"),
        text(_LEFT - 8, _RATE[1] + 4, "0", anchor="end"),
        text(_LEFT - 8, _BATCH[0] + 10, tokens_text(largest), anchor="end"),
        text(_LEFT, _BATCH[1] + 16, "0", color=NOTE),
        text(_WIDTH - _RIGHT, _BATCH[1] + 16, f"{tokens_text(end)} tokens", anchor="end"),
    ]
    for phase in table:
        left = x(phase.consumed_tokens)
        width = x(phase.consumed_after(phase.last_step)[1]) - left
        height = phase.step_tokens / largest * (_BATCH[1] - _BATCH[0])
        parts.append(box(left, _BATCH[1] - height, width, height, "#9ecae1", title=phase.name))
        dash = "" if runs_on(table[max(0, phase.index - 1)].config, phase.config) else _DASH
        parts.append(
            f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{_RATE[0] - 10}" y2="{_BATCH[1]}" '
            f'stroke="{INK if dash else "#d5dbe1"}"{dash}/>'
        )
        if width > 6 * len(phase.name):
            parts.append(text(left + 4, _RATE[0] - 14, phase.name, color=NOTE))
    line = f'<polyline points="{" ".join(points)}" fill="none" stroke="{_LINE}" stroke-width="2"/>'
    return "\n".join([*parts, line, "</svg>"])


_DASH = ' stroke-dasharray="5 4"'
