# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The end of a rank's process: its exit code is that of its work, whatever its threads do."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

from k2_megatron.errors import TopologyError
from k2_megatron.launch.ranks import launched_rank


class RankEnding:
    """Ends a rank before the interpreter takes itself apart, once all else has had its turn.

    The threads of gloo and NCCL live as long as a group is held somewhere, and one that wants the
    interpreter while it is taken apart aborts the process: an exit with 2 would become SIGABRT,
    now and then. Processes that no launcher has made a rank end as always.
    """

    def __init__(self) -> None:
        """Be made first: what registers an end of its own later comes before this one."""
        self._code: int | None = None
        atexit.register(self._leave)

    def with_code(self, code: int) -> None:
        """End with `code` if this process is a rank."""
        with suppress(TopologyError):
            self._code = None if launched_rank() is None else code

    def _leave(self) -> None:
        if self._code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or not there at all
                stream.flush()
        os._exit(self._code)
