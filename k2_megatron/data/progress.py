# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Show how far preparing is: a bar on a terminal, a line now and then elsewhere."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Never, Protocol, TextIO

from tqdm import tqdm

_LINE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Progress:
    """How far preparing is; bytes are those of the input files, before unpacking."""

    num_documents: int
    num_tokens: int
    read_bytes: int
    total_bytes: int


class ProgressReport(Protocol):
    """Whatever wants to know; called after every batch."""

    def __call__(self, progress: Progress, /) -> None:
        """Take note."""


class ProgressDisplay:
    """A context manager that prints to a stream, in a form that suits it."""

    def __init__(self, stream: TextIO) -> None:
        """Print to `stream`, usually standard error."""
        self._stream = stream
        self._bar: tqdm[Never] | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        """Return the display."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the line of the bar, so that what follows starts on its own."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Show the state."""
        counts = f"{progress.num_documents:,} documents, {progress.num_tokens:,} tokens"
        if self._stream.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    total=progress.total_bytes, unit="B", unit_scale=True, file=self._stream
                )
            self._bar.set_postfix_str(counts, refresh=False)
            self._bar.update(progress.read_bytes - self._bar.n)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            share = progress.read_bytes / max(progress.total_bytes, 1)
            print(f"{share:4.0%} read: {counts}", file=self._stream, flush=True)
