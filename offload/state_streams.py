# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of optimizer state between host and device, beside the optimizer's computation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from k2_megatron.offload.streams import CudaStreams, HostCopies, PlainStreams, Queue

# To, from: of one shape and dtype, both contiguous.
Pairs = Sequence[tuple[Tensor, Tensor]]


class StateStreams(HostCopies, Protocol):
    """One queue in and one out, of tensors that stay on the host."""

    def begin(self) -> None:
        """Let later copies in wait for what has been queued to compute."""

    def bring(self, pairs: Pairs, after: Any) -> Any:
        """Copy to the device, beside what is computed.

        Args:
            pairs: device, host.
            after: mark of a copy out before which the device's memory may not be written, or None.

        Returns:
            The mark behind the copies.
        """

    def take(self, pairs: Pairs) -> Any:
        """Copy to the host, behind what has been queued to compute.

        Args:
            pairs: host, device.

        Returns:
            The mark behind the copies.
        """

    def settle(self) -> None:
        """Let the host wait until all copies are done."""


class PlainStateStreams(PlainStreams):
    """Copies that are done when the call returns; for a device that is the host."""

    def begin(self) -> None:
        """Nothing is under way."""

    def bring(self, pairs: Pairs, after: Any) -> Any:
        """Copy."""
        self._copy(pairs, "in")

    def take(self, pairs: Pairs) -> Any:
        """Copy."""
        self._copy(pairs, "out")

    def settle(self) -> None:
        """Nothing is under way."""

    def _copy(self, pairs: Pairs, queue: Queue) -> None:
        begin = time.perf_counter()
        for target, source in pairs:
            target.copy_(source)
        self._waited[queue] += time.perf_counter() - begin


class CudaStateStreams(CudaStreams):
    """One CUDA stream in and one out, which wait for each other and for computation by events."""

    def begin(self) -> None:
        """Memory was allocated on the current stream and may still be read by what is queued."""
        self._in.wait_stream(torch.cuda.current_stream())

    def bring(self, pairs: Pairs, after: Any) -> Any:
        """Queue copies on the stream in: behind `after`, not behind what is computed."""
        if after is not None:
            self._in.wait_event(after)
        self._copy(self._in, pairs)
        return self._in.record_event()

    def take(self, pairs: Pairs) -> Any:
        """Queue copies on the stream out, behind the current stream."""
        self._out.wait_stream(torch.cuda.current_stream())
        self._copy(self._out, pairs)
        return self._out.record_event()

    def settle(self) -> None:
        """Wait for both streams."""
        self._in.synchronize()
        self._out.synchronize()

    @staticmethod
    def _copy(stream: Any, pairs: Pairs) -> None:
        with torch.cuda.stream(stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)


def state_streams(device: torch.device) -> StateStreams:
    """The streams of a device."""
    return CudaStateStreams() if device.type == "cuda" else PlainStateStreams()
