# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A wish to stop, from the user or the cluster, on which all ranks agree before they act."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Names the pipe that the launcher holds open as long as it lives.
PARENT_PIPE = "K2_MEGATRON_PARENT_PIPE"


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and SIGINT; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        """Begin to listen. As early as possible: torch and megatron-core take seconds to import."""
        self._number = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def agreed(self, device: torch.device) -> str | None:
        """The name of the signal that any rank received, or None. Collective over all ranks.

        Args:
            device: on which the flag travels between the ranks.
        """
        import torch
        import torch.distributed as dist

        flag = torch.tensor([self._number], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        number = int(flag)
        return signal.Signals(number).name if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if number == signal.SIGINT:
            # Not KeyboardInterrupt: a process that waits in a collective would never raise it.
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_with_parent() -> None:
    """Let the end of the launcher, however it came, count as SIGTERM; without one do nothing."""
    given = os.environ.get(PARENT_PIPE)
    if given is None:
        return
    pipe = int(given)

    def wait() -> None:
        os.read(pipe, 1)  # nobody writes: it returns when the launcher is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stop_with_parent", daemon=True).start()
