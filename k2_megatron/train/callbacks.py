# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The seam between the loop and everything that watches it: Callback and CallbackList.

The loop calls the list at fixed moments and knows nothing of files. Order in the list is order of
the calls, so that JsonlWriter stands before CurvesWriter, which reads its file.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from k2_megatron.train.metrics import StepRecord


class Callback:
    """A watcher of the loop; overrides the moments it cares about.

    A constructor opens nothing: files are opened in `on_train_start`, so that building the same
    list on every rank is free. `close` is called once at the very end, also after an error and
    also when `on_train_start` was never reached.
    """

    def on_train_start(self, resumed_step: int) -> None:
        """Prepare; `resumed_step` is the last step the weights have seen, 0 for a new run."""

    def measure(self, record: StepRecord) -> Mapping[str, float]:
        """Return further values of this step by tag, for `record.extra`.

        Every callback has measured before any callback sees the step in `on_step_end`.
        """
        return {}

    def on_step_end(self, record: StepRecord) -> None:
        """Take the record of a logged step."""

    def on_valid(self, step: int, valid_loss: float) -> None:
        """Take a validation loss, before `on_step_end` of the same step, which carries it too.

        A new run that evaluates has one of step 0, before training, which no record follows.
        """

    def on_rollback(self, step: int) -> None:
        """Forget what was written past `step`: the run has gone back to it.

        Where it raises OSError it is called again in front of the next moment.
        """

    def on_train_end(self) -> None:
        """Finish what a run that ended in order should leave: last step or stop by signal."""

    def close(self) -> None:
        """Release files and processes."""


class CallbackList:
    """Calls callbacks in the order given, on the one rank that writes and nowhere else."""

    def __init__(
        self,
        callbacks: Iterable[Callback],
        *,
        writes: bool,
        say: Callable[[str], None] = print,
    ) -> None:
        """Keep the callbacks.

        Args:
            callbacks: in the order in which they are called.
            writes: whether this rank is the one that writes; elsewhere no callback is ever called.
            say: takes the message where one cannot write.
        """
        self._callbacks = tuple(callbacks) if writes else ()
        self._say = say
        self._failing: set[Callback] = set()
        self._gone_back: dict[Callback, int] = {}

    def on_train_start(self, resumed_step: int) -> None:
        """Prepare every callback; `resumed_step` is 0 for a new run."""
        for callback in self._callbacks:
            callback.on_train_start(resumed_step)

    def on_step_end(self, record: StepRecord) -> None:
        """Let every callback measure, then hand each the record with all that was measured."""
        extra = dict(record.extra)
        for callback in self._callbacks:
            extra |= callback.measure(record)
        complete = replace(record, extra=extra)
        for callback in self._callbacks:
            if self._try(callback, partial(callback.on_step_end, complete)):
                self._failing.discard(callback)

    def on_valid(self, step: int, valid_loss: float) -> None:
        """Hand out a validation loss, before `on_step_end` of the same step."""
        for callback in self._callbacks:
            self._try(callback, partial(callback.on_valid, step, valid_loss))

    def on_rollback(self, step: int) -> None:
        """Let every callback forget what came after `step`."""
        for callback in self._callbacks:
            self._gone_back[callback] = step
            self._try(callback)

    def on_train_end(self) -> None:
        """Let every callback finish a run that ended in order."""
        for callback in self._callbacks:
            self._try(callback, callback.on_train_end, told="cannot write")

    def _try(
        self,
        callback: Callback,
        action: Callable[[], None] = lambda: None,
        told: str = "cannot write, training goes on",
    ) -> bool:
        """Let a full disk cost a measurement and not the run; said once until a step goes well.

        A rollback that is owed comes first. Whether the disk took all of it.
        """
        try:
            if callback in self._gone_back:
                callback.on_rollback(self._gone_back[callback])
                del self._gone_back[callback]
            action()
        except OSError as error:
            if callback not in self._failing:
                self._say(f"warning: {type(callback).__name__} {told}: {error}")
            self._failing.add(callback)
            return False
        return True

    def close(self) -> None:
        """Close every callback, the last first, even where one of them raises.

        A full disk is said and does not raise: the run may be whole, its checkpoint saved.
        """
        # One that is owed may raise what ended the run, and a resume drops those steps anyway.
        self._gone_back.clear()
        with ExitStack() as stack:
            for callback in self._callbacks:
                stack.callback(self._try, callback, callback.close, told="cannot write")
