# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How bytes travel between device and host: on streams beside the computation, or at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, UntypedStorage

from k2_megatron.offload.pages import locked_memory, unlock


def bytes_of(storage: UntypedStorage) -> Tensor:
    """A storage as uint8 [bytes], with a version counter of its own."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


# A storage on the device and its place on the host.
Pair = tuple[UntypedStorage, Tensor]
# Out: from the device to the host; in: back.
Queue = Literal["out", "in"]


class HostCopies(Protocol):
    """Where copies are queued. A mark is a moment in a queue; marks of one queue pass in order."""

    def host_memory(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] on the host that copies can go to and from."""

    def free(self, memory: Tensor) -> None:
        """Give back what `host_memory` gave; nothing that it holds is needed."""

    def wait(self, mark: Any, queue: Queue) -> None:
        """Let the computation queued from now on wait until a mark of a queue has passed."""

    def waited_seconds(self) -> dict[Queue, float]:
        """How long computation has stood in `wait` since this was asked; waits for the device."""

    def forget_waits(self) -> None:
        """Count waits from now on, without waiting for the device."""


class Streams(HostCopies, Protocol):
    """One queue out and one in, of storages whose memory is given up between the two."""

    def here(self) -> Any:
        """Where computation is queued now."""

    def send(self, pairs: Sequence[Pair], behind: Any, after: Any) -> Any:
        """Copy storages to the host, behind what has been queued to compute them.

        Args:
            pairs: places on the host are uint8, of as many bytes.
            behind: where they are computed: what `here` was.
            after: mark before which the places may not be written; None: there is none.

        Returns:
            The mark behind the last copy.
        """

    def fetch(self, pairs: Sequence[Pair]) -> Any:
        """Copy places on the host to storages, behind what has been queued to compute.

        Returns:
            The mark behind the last copy.
        """

    def empty(self, storage: UntypedStorage) -> None:
        """Give a storage's memory back, behind what has been queued."""

    def allocate(self, storage: UntypedStorage, nbytes: int) -> None:
        """Give a storage memory again."""


class PlainStreams:
    """Copies that are done when the call returns; for a device that is the host."""

    def __init__(self) -> None:
        self._waited: dict[Queue, float] = {"out": 0.0, "in": 0.0}

    def host_memory(self, nbytes: int) -> Tensor:
        """Ordinary memory."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def free(self, memory: Tensor) -> None:
        """Nothing: it goes with its last tensor."""

    def here(self) -> Any:
        """There is one place."""

    def send(self, pairs: Sequence[Pair], behind: Any, after: Any) -> Any:
        """Copy."""
        begin = time.perf_counter()
        for storage, place in pairs:
            place.copy_(bytes_of(storage))
        self._waited["out"] += time.perf_counter() - begin

    def fetch(self, pairs: Sequence[Pair]) -> Any:
        """Copy."""
        begin = time.perf_counter()
        for storage, place in pairs:
            bytes_of(storage).copy_(place)
        self._waited["in"] += time.perf_counter() - begin

    def wait(self, mark: Any, queue: Queue) -> None:
        """Nothing to wait for."""

    def empty(self, storage: UntypedStorage) -> None:
        """Free it."""
        storage.resize_(0)

    def allocate(self, storage: UntypedStorage, nbytes: int) -> None:
        """Make it as large as it was."""
        storage.resize_(nbytes)

    def waited_seconds(self) -> dict[Queue, float]:
        """The time of all copies: nothing runs beside them."""
        waited = self._waited
        self.forget_waits()
        return waited

    def forget_waits(self) -> None:
        """Begin at 0."""
        self._waited = {"out": 0.0, "in": 0.0}


class CudaStreams:
    """One CUDA stream out and one in, beside those that compute and communicate.

    No memory is marked by `record_stream` here: the allocator would keep it from reuse until the
    host has seen the copy end, and the host is ahead. (Overlapped expert communication marks the
    residual, fine_grained_callables.py:576, which comes back later for it.) It is not needed,
    because the stream that computes waits for a copy before the memory is given up or read: the
    current one where a slot begins, that of the tensor's node in a hook of backward. Whoever
    computes on another stream begins behind it (model_chunk_schedule_plan.py:374: the plan's event,
    which each node waits for).
    """

    def __init__(self) -> None:
        self._out: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._in: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._waits: list[tuple[Queue, Any, Any]] = []

    def host_memory(self, nbytes: int) -> Tensor:
        """Page-locked memory.

        Raises:
            RuntimeError: the driver refuses to lock that much.
        """
        return locked_memory(nbytes)

    def free(self, memory: Tensor) -> None:
        """Wait for all copies and unlock it."""
        unlock(memory)

    def here(self) -> Any:
        """The current stream."""
        return torch.cuda.current_stream()

    def send(self, pairs: Sequence[Pair], behind: Any, after: Any) -> Any:
        """Queue copies on the stream out, behind a stream."""
        self._out.wait_stream(behind)
        if after is not None:
            self._out.wait_event(after)
        with torch.cuda.stream(self._out):
            for storage, place in pairs:
                place.copy_(bytes_of(storage), non_blocking=True)
        return self._out.record_event()

    def fetch(self, pairs: Sequence[Pair]) -> Any:
        """Queue copies on the stream in, behind the current stream.

        The memory was allocated on that one, and may still be in use by what is queued there.
        """
        self._in.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._in):
            for storage, place in pairs:
                bytes_of(storage).copy_(place, non_blocking=True)
        return self._in.record_event()

    def wait(self, mark: Any, queue: Queue) -> None:
        """Let the current stream wait, between two events that tell how long."""
        current = torch.cuda.current_stream()
        begin, end = _timed_event(), _timed_event()
        begin.record(current)
        current.wait_event(mark)
        end.record(current)
        self._waits.append((queue, begin, end))

    def empty(self, storage: UntypedStorage) -> None:
        """Hand the memory to the allocator, in the order of the stream."""
        storage.resize_(0)

    def allocate(self, storage: UntypedStorage, nbytes: int) -> None:
        """Memory of the current stream."""
        storage.resize_(nbytes)

    def waited_seconds(self) -> dict[Queue, float]:
        """Read the events; waits for the last of them."""
        waits, self._waits = self._waits, []
        if waits:
            waits[-1][2].synchronize()
        found: dict[Queue, float] = {"out": 0.0, "in": 0.0}
        for queue, begin, end in waits:
            found[queue] += float(begin.elapsed_time(end)) / 1000
        return found

    def forget_waits(self) -> None:
        """Drop the events."""
        self._waits = []


def _timed_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def streams_of(device: torch.device) -> Streams:
    """The streams of a device."""
    return CudaStreams() if device.type == "cuda" else PlainStreams()
