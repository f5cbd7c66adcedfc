# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A piece of work that is done at once or in a thread, and asked for its result later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Work(Generic[T]):
    """Runs an action once; what it raises is kept and raised where the result is asked for."""

    def __init__(self, action: Callable[[], T], *, background: bool) -> None:
        """Run `action` now, or start it in a thread.

        The thread is a daemon: a rank that ends by an error does not wait for its disk, and what
        the thread leaves behind is a folder without a name.
        """
        self._result: T | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(
                target=self._run, args=(action,), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            self._run(action)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, well or badly, but no longer than `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)

    def result_if_done(self) -> T | None:
        """The result, or None where it has not ended.

        Raises:
            Exception: what the action raised.
        """
        if self._thread is not None and self._thread.is_alive():
            return None
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self, action: Callable[[], T]) -> None:
        try:
            self._result = action()
        except Exception as error:
            self._error = error
