# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The learning rate of a step, a function of the configuration alone: a resume needs no state.

The formulas are those of megatron-core's OptimizerParamScheduler, operation by operation, so that
a schedule it can express has its rates bit for bit. It knows one warm-up and one decay; here a run
is a row of courses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from k2_megatron.config.config import Config
from k2_megatron.config.phases import phases_of
from k2_megatron.config.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Course:
    """A piece of the learning rate's way.

    Attributes:
        style: constant, linear or cosine.
        start: the rate from which it leaves; its first step is on its way already.
        end: the rate of its last step.
        parts: (number of steps, tokens of each) where the batch or the sequences change on the way.
    """

    style: str
    start: float
    end: float
    parts: tuple[tuple[int, int], ...]

    @property
    def num_steps(self) -> int:
        """Its length."""
        return sum(steps for steps, _ in self.parts)

    def at(self, step: int) -> float:
        """The rate of its step number `step`, from 1."""
        if self.style == "constant":
            return self.end
        # The way in units that keep steps of one size countable as steps.
        unit = math.gcd(*(tokens for _, tokens in self.parts))
        whole = sum(steps * (tokens // unit) for steps, tokens in self.parts)
        done, left = 0, step
        for steps, tokens in self.parts:
            done += min(left, steps) * (tokens // unit)
            left = max(0, left - steps)
        if self.style == "linear" and self.end > self.start:
            return self.start + (self.end - self.start) * float(done) / float(whole)
        ratio = float(done) / float(whole)
        share = 1.0 - ratio if self.style == "linear" else 0.5 * (math.cos(math.pi * ratio) + 1.0)
        return self.end + share * (self.start - self.end)


def courses_of(config: Config) -> tuple[Course, ...]:
    """The courses of a resolved configuration, in their order."""
    schedule = config.schedule
    return _of_phases(config) if schedule.phases else _of_keys(schedule)


def learning_rate(courses: Sequence[Course], step: int) -> float:
    """The rate of a step of the run, from 1; beyond the end that of the last step."""
    for course in courses[:-1]:
        if step <= course.num_steps:
            return course.at(step)
        step -= course.num_steps
    return courses[-1].at(min(step, courses[-1].num_steps))


def _of_phases(config: Config) -> tuple[Course, ...]:
    found: list[Course] = []
    for given, phase in zip(config.schedule.phases, phases_of(config), strict=True):
        part = (phase.num_steps, phase.step_tokens)
        before = found[-1] if found else Course(style="constant", start=0.0, end=0.0, parts=())
        if given.lr_style == "continue":
            found[-1:] = [
                Course(
                    style=before.style,
                    start=before.start,
                    end=before.end,
                    parts=(*before.parts, part),
                )
            ]
            continue
        end = before.end if given.lr is None else given.lr
        start = before.end if given.lr_start is None else given.lr_start
        found.append(Course(style=given.lr_style, start=start, end=end, parts=(part,)))
    return tuple(found)


def _of_keys(schedule: ScheduleConfig) -> tuple[Course, ...]:
    """The courses of train_steps and the lr keys."""
    high, low, style = schedule.lr, schedule.min_lr, schedule.lr_decay_style
    rest = schedule.train_steps - schedule.lr_warmup_steps
    tail = (schedule.lr_wsd_decay_steps or 0) if style == "wsd" else rest
    found = [_course("linear", 0.0, high, schedule.lr_warmup_steps)]
    if style == "constant":
        found.append(_course("constant", high, high, rest))
    elif style == "wsd":
        # Not `high`: the scheduler computes its constant part like this, too.
        plateau = low + 1.0 * (high - low)
        found += [_course("constant", plateau, plateau, rest - tail)]
        found += [_course("cosine", high, low, tail)]
    else:
        found.append(_course(style, high, low, rest))
    return tuple(course for course in found if course.num_steps)


def _course(style: str, start: float, end: float, steps: int) -> Course:
    return Course(style=style, start=start, end=end, parts=((steps, 1),))
