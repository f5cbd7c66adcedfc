# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where megatron-core's schedules tell the engine that a slot begins.

Its plain schedules start a timer in front of each forward and each backward
(schedules.py:402 and 460); its overlapped one calls `run` of the plan that the forward step
function returned (combined_1f1b.py:392). Both are hooks it means for others; nothing is replaced.
"""

from __future__ import annotations

from typing import Any

from megatron.core.models.common.model_chunk_schedule_plan import TransformerModelChunkSchedulePlan

from k2_megatron.offload.engine import OffloadEngine


class _NoTimer:
    """A timer that nobody reads."""

    def start(self, **unused: Any) -> None:
        """Nothing."""

    def stop(self, **unused: Any) -> None:
        """Nothing."""


class _Slot(_NoTimer):
    """A timer whose start is the begin of a slot."""

    def __init__(self, engine: OffloadEngine, *, forward: bool) -> None:
        self._engine, self._forward = engine, forward

    def start(self, **unused: Any) -> None:
        """Tell the engine."""
        self._engine.begin(forward=self._forward, backward=not self._forward)


class SlotTimers:
    """What `TransformerConfig.timers` is for schedules without overlap.

    Args:
        engine: which is told of forwards and backwards.
    """

    def __init__(self, engine: OffloadEngine) -> None:
        self._slots = {
            "forward-compute": _Slot(engine, forward=True),
            "backward-compute": _Slot(engine, forward=False),
        }
        self._other = _NoTimer()

    def __call__(self, name: str, log_level: int | None = None) -> _NoTimer:
        """The timer of a name."""
        return self._slots.get(name, self._other)


class SlotPlan(TransformerModelChunkSchedulePlan):  # type: ignore[misc]
    """A plan of a forward whose `run` begins a slot.

    Attributes:
        engine: which is told of it.
    """

    engine: OffloadEngine

    @staticmethod
    def run(f_schedule_plan: Any, b_schedule_plan: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a forward, a backward or both, of plans that `watch` has seen."""
        plan = f_schedule_plan or b_schedule_plan
        plan.engine.begin(forward=f_schedule_plan is not None, backward=b_schedule_plan is not None)
        return TransformerModelChunkSchedulePlan.run(
            f_schedule_plan, b_schedule_plan, *args, **kwargs
        )


def watch(plan: Any, engine: OffloadEngine) -> Any:
    """Let the engine know when the plan of a forward runs.

    Args:
        plan: from GPTModel.build_schedule_plan; it is changed.
    """
    assert type(plan) is TransformerModelChunkSchedulePlan
    plan.__class__ = SlotPlan
    plan.engine = engine
    return plan
