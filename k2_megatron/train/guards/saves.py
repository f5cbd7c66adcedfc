# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Saves that may fail for want of disk: training goes on, and the next one tries again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from k2_megatron.checkpoint.folder import Saved
from k2_megatron.errors import CheckpointError, DiskError
from k2_megatron.train.events import EventLog
from k2_megatron.train.state import SessionSaver


class GuardedSaver:
    """A SessionSaver whose disk may refuse some saves in a row; the same on all ranks."""

    def __init__(
        self, saver: SessionSaver, events: EventLog, say: Callable[[str], None], *, max_failed: int
    ) -> None:
        """Count from here.

        Args:
            saver: does the work.
            events: takes each failure.
            say: prints on rank 0.
            max_failed: saves in a row that may fail before the run does.
        """
        self._saver, self._events, self._say, self._max_failed = saver, events, say, max_failed
        self._failed = 0

    def reserve(self) -> None:
        """Do what the first save in the background would make training wait for. Collective.

        Raises:
            CheckpointError: a rank has too little host memory.
        """
        self._saver.reserve()

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        last: bool = False,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        """Save after `step`, or begin to. Collective.

        Args:
            step: the last one done.
            state: of the guards.
            last, waiting: as for `finish`.

        Raises:
            CheckpointError: the disk refused too often, or what is saved is not as it must be.
        """
        # Apart, so that an earlier save that fails does not keep this one from being tried.
        self.finish(waiting=waiting)
        self._attempt(lambda: self._saver.save(step, state, waiting), last=last)

    def advance(self) -> None:
        """Look after a save that goes on. Collective if there is one.

        Raises:
            CheckpointError: as `save`.
        """
        self._attempt(self._saver.advance)

    def finish(self, *, last: bool = False, waiting: Callable[[], None] | None = None) -> None:
        """Wait for a save that goes on. Collective.

        Args:
            last: no later save could make up for this one: a failure is an error.
            waiting: called as often as any rank has written more.

        Raises:
            CheckpointError: as `save`; or the disk refused the last one.
        """
        self._attempt(lambda: self._saver.finish(waiting), last=last)

    def _attempt(self, action: Callable[[], list[Saved]], *, last: bool = False) -> None:
        try:
            saved = action()
        except DiskError as error:
            self._failed += 1
            self._events.write("save_failed", in_a_row=self._failed, reason=str(error))
            if last:
                raise
            if self._failed >= self._max_failed:
                raise CheckpointError(
                    f"{error}\n  {self._failed} saves in a row have failed "
                    f"(checkpoint.max_failed_saves {self._max_failed}); make room and give the "
                    "same command again"
                ) from error
            self._say(
                f"warning: {error}; training goes on, the next save tries again "
                f"(failed in a row: {self._failed} of {self._max_failed})"
            )
            return
        for one in saved:
            self._failed = 0
            self._events.write("saved", path=str(one.path), size_bytes=one.size_bytes)
            for warning in one.warnings:
                self._say(f"warning: {warning}")
