# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One aligned line of text for each logged step, the same on a terminal and in a log file."""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from k2_megatron.train.callbacks import Callback
from k2_megatron.train.metrics import StepRecord

WINDOW = 20
"""Logged steps over which the time left is estimated."""


class ProgressPrinter(Callback):
    """Prints step, losses, learning rate, speed and the estimated time left (ETA).

    The ETA takes the wall time between recent logged steps, so that validation and checkpoints
    count; after the first logged step it has only that step's own duration.
    """

    def __init__(
        self,
        total_steps: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up the printer.

        Args:
            total_steps: the step at which this run ends.
            stream: where to print; standard output by default.
            clock: seconds from any origin.
        """
        self._total_steps = total_steps
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._seen: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)

    def on_rollback(self, step: int) -> None:
        """Estimate the time left from here."""
        self._seen.clear()

    def on_valid(self, step: int, valid_loss: float) -> None:
        """Print the loss before training; later ones stand in their step's line."""
        if step == 0:
            print(f"before training: valid {valid_loss:.4f}", file=self._stream, flush=True)

    def on_step_end(self, record: StepRecord) -> None:
        """Print the line and flush it."""
        self._seen.append((record.step, self._clock()))
        line = format_line(record, self._total_steps, self._eta_seconds(record))
        print(line, file=self._stream, flush=True)

    def _eta_seconds(self, record: StepRecord) -> float:
        (first_step, first_time), (last_step, last_time) = self._seen[0], self._seen[-1]
        seconds_per_step = record.step_seconds
        if last_step > first_step:
            seconds_per_step = (last_time - first_time) / (last_step - first_step)
        return seconds_per_step * max(self._total_steps - record.step, 0)


def format_line(record: StepRecord, total_steps: int, eta_seconds: float) -> str:
    """Return the line of one step, without newline; columns keep their width from line to line."""
    width = len(str(total_steps))
    valid = "-" if record.valid_loss is None else f"{record.valid_loss:.4f}"
    columns = [
        f"step {record.step:>{width}}/{total_steps}",
        f"loss {record.loss:8.4f}",
        f"valid {valid:>8}",
        f"lr {record.lr:.2e}",
        f"grad norm {record.grad_norm:8.3f}",
        f"{format_count(record.tokens_per_second):>6} tokens/s",
        f"{record.tflops_per_device:8.3f} TFLOP/s/device",
        f"ETA {format_duration(eta_seconds):>12}",
    ]
    return " | ".join(columns) + (" | step skipped" if record.skipped else "")


def format_count(value: float) -> str:
    """Return a count in at most five characters up to 1000 T: 512, 12.3k, 4.56M, 1.20B, 15.5T."""
    for suffix in ("", "k", "M", "B", "T"):
        if value < 999.5:
            digits = f"{value:#.3g}".rstrip(".") if suffix else f"{value:.0f}"
            return digits + suffix
        value /= 1000
    return f"{value * 1000:.0f}T"


def format_duration(seconds: float) -> str:
    """Return hours, minutes and seconds, with days in front where there are any: 2d 03:04:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock
