# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A wish to stop, from the user or the cluster, on which all ranks agree before they act."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and SIGINT; a second SIGINT ends the process at once."""

    def __init__(self, device: torch.device) -> None:
        """Begin to listen; the flag travels between ranks on `device`."""
        self._device = device
        self._number = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def agreed(self) -> str | None:
        """The name of the signal that any rank received, or None. Collective over all ranks."""
        flag = torch.tensor([self._number], device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        number = int(flag)
        return signal.Signals(number).name if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
