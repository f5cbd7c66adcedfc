# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""When the loss has risen out of its course, and which steps' text is left out because of it.

A step is *high* when its loss lies above the median of the losses before it by more than
`factor` robust standard deviations. So many high steps in a row are a spike. The run then goes back
to a checkpoint from before the first of them and passes these steps over: their text is not trained
on, and the schedule goes by. The step therefore stays the position in data and schedule, and a run
that went back equals, bit for bit, one that was told to pass these steps over from its beginning.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

# Of a normal distribution: standard deviation over median absolute deviation.
_DEVIATION = 1.4826
# Losses that hardly vary would make any rise a spike.
_LEAST_DEVIATION = 1e-3
MIN_LOSSES = 10


@dataclass(frozen=True)
class Spike:
    """Steps `first` to `last`, whose losses were all above `limit`, nats a token."""

    first: int
    last: int
    limit: float
    losses: tuple[float, ...]

    def describe(self) -> str:
        """What was seen, as text."""
        losses = ", ".join(f"{loss:.4f}" for loss in self.losses)
        return f"steps {self.first} to {self.last} have losses {losses}, above {self.limit:.4f}"


class SpikeGuard:
    """Watches the loss; keeps which steps are passed over and how often the run went back."""

    def __init__(self, *, factor: float, steps: int, window: int) -> None:
        """Know no loss yet.

        Args:
            factor: robust standard deviations above the median.
            steps: high steps in a row that make a spike.
            window: losses looked back on; judged from MIN_LOSSES of them on, or all if fewer.
        """
        self._factor, self._steps = factor, steps
        self._window = window
        self._losses: deque[float] = deque(maxlen=window)
        self._high: list[tuple[int, float]] = []  # step, loss
        self._passed_over: list[tuple[int, int]] = []
        self.rollbacks = 0

    def limit(self) -> float | None:
        """The loss above which a step is high; None while too few losses are known."""
        if len(self._losses) < min(MIN_LOSSES, self._window):
            return None
        middle = median(self._losses)
        deviation = _DEVIATION * median(abs(loss - middle) for loss in self._losses)
        return middle + self._factor * max(deviation, _LEAST_DEVIATION * abs(middle))

    def judge(self, step: int, loss: float) -> Spike | None:
        """Take the loss of a step that was trained; the spike, if one is complete with it."""
        limit = self.limit()
        if limit is None or loss <= limit:
            if math.isfinite(loss):
                self._losses.append(loss)
            self._high.clear()
            return None
        self._high.append((step, loss))
        if len(self._high) < self._steps:
            return None
        found = Spike(self._high[0][0], step, limit, tuple(loss for _, loss in self._high))
        self._high.clear()
        return found

    def forget(self, *, losses: bool) -> None:
        """Begin to count high steps anew; with `losses`, to learn the course of the loss too."""
        self._high.clear()
        if losses:
            self._losses.clear()

    def go_back(self, spike: Spike, state: Mapping[str, Any] | None) -> None:
        """Pass the steps of a spike over from now on.

        Args:
            spike: what `judge` has found.
            state: of the checkpoint that the run goes back to; None where it was saved without a
                guard: losses and high steps are forgotten. The steps passed over since then and
                the number of rollbacks are kept.
        """
        passed_over, rollbacks = self._passed_over, self.rollbacks
        if state is None:
            self.forget(losses=True)
        else:
            self.restore(state)
        self._passed_over = [*passed_over, (spike.first, spike.last)]
        self.rollbacks = rollbacks + 1

    def passes_over(self, step: int) -> bool:
        """Whether the text of `step` is left out."""
        return any(first <= step <= last for first, last in self._passed_over)

    def describe(self) -> str:
        """The steps that are passed over, as text."""
        return ", ".join(f"{first} to {last}" for first, last in self._passed_over) or "none"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON data."""
        return {
            "losses": list(self._losses),
            "high": [[step, loss if math.isfinite(loss) else None] for step, loss in self._high],
            "passed_over": [list(steps) for steps in self._passed_over],
            "rollbacks": self.rollbacks,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self._losses = deque(state["losses"], maxlen=self._window)
        self._high = [(step, math.inf if loss is None else loss) for step, loss in state["high"]]
        self._passed_over = [(first, last) for first, last in state["passed_over"]]
        self.rollbacks = state["rollbacks"]
