# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Sends activations to the host and brings them back, slot by slot of the pipeline's schedule.

What travels are storages: whoever saved a tensor, or a view of it, for backward holds the storage
and finds the numbers in it again, without knowing that they were gone (`recompute/storage.py` has
why not saved-tensor hooks). Forward tells the engine of each tensor as it is made; the schedule
tells it of each slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from k2_megatron.offload.pool import Block, HostPool
from k2_megatron.offload.sizes import PoolSize
from k2_megatron.offload.slots import LAYERS_THAT_STAY, Itinerary, Pack
from k2_megatron.offload.streams import Pair, Queue, Streams
from torch import Tensor, UntypedStorage


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What travelled in one call of the schedule, in bytes.

    Attributes:
        sent: to the host.
        fetched: back; the same.
        stayed: meant to travel, but their block was full.
    """

    sent: int = 0
    fetched: int = 0
    stayed: int = 0


# A copy takes the host more time than the copy engine needs for a small tensor, so these are sent
# together; a large one goes at once, with those in front of it.
SEND_BYTES = 64 * 2**20
EMPTIED = "somebody else emptied what travels"

_Item = tuple[UntypedStorage, int, Tensor]


@dataclass(kw_only=True)
class _Load:
    """A pack or a layer under way, in parts; backward reads the last part first.

    It holds each storage until the computation waits for it to be back: a copy may still write to
    one that nobody saved.

    Attributes:
        block: its place on the host.
        unsent: what is copied to the host next.
        unsent_bytes: of it.
        made_on: where it was computed.
        parts: (storage, bytes, place) of what is in each; the last one grows, and each is emptied
            when it is read.
        known: storages that are in it.
        sent: mark behind the last copy to the host.
        arrivals: of each part, the mark behind its copy back; empty while nothing has to be
            waited for.
        is_away: the device's copies were given up.
    """

    block: Block
    unsent: list[Pair] = field(default_factory=list)
    unsent_bytes: int = 0
    made_on: Any = None
    parts: list[list[_Item]] = field(default_factory=lambda: [[]])
    known: set[int] = field(default_factory=set)
    sent: Any = None
    arrivals: list[Any] = field(default_factory=list)
    is_away: bool = False


@dataclass(kw_only=True)
class _Layers:
    """A pack whose layers travel one by one, in the order of forward."""

    block: Block
    loads: list[_Load] = field(default_factory=list)


class OffloadEngine:
    """Keeps the packs of one rank.

    Args:
        streams: of the rank's device.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._pool: HostPool | None = None
        self._plan: Itinerary | None = None
        self._next = 0
        self._loads: dict[Pack, _Load] = {}
        self._open: _Load | None = None
        self._layers: dict[Pack, _Layers] = {}
        self._forward: Pack | None = None
        self._done: Pack | None = None
        self._leaving: dict[int, list[Pack]] = {}
        self._coming: dict[int, list[Pack]] = {}
        self._sent = self._fetched = self._stayed = 0

    @property
    def pool_bytes(self) -> int:
        """Host memory that is held; 0 before `provide`."""
        return 0 if self._pool is None else self._pool.total_bytes

    @property
    def high_water_bytes(self) -> int:
        """The most of it that was in use at once."""
        return 0 if self._pool is None else self._pool.high_water_bytes

    @property
    def traffic(self) -> Traffic:
        """Of the last call of the schedule, or of the one under way."""
        return Traffic(sent=self._sent, fetched=self._fetched, stayed=self._stayed)

    def waited_seconds(self) -> dict[Queue, float]:
        """How long computation waited in it for copies, by direction; waits for the device."""
        return self._streams.waited_seconds()

    def provide(self, sizes: Sequence[PoolSize]) -> None:
        """Allocate host memory, unless it is there. Not while something travels.

        Another number of micro-batches may need other blocks; it changes rarely.

        Args:
            sizes: enough for the next itinerary.
        """
        assert self._plan is None
        if self._pool is not None:
            if self._pool.sizes == tuple(sizes):
                return
            self._pool.close()
            self._pool = None  # before there are two of them
        self._pool = HostPool(sizes, self._streams)

    @contextmanager
    def running(self, plan: Itinerary) -> Iterator[None]:
        """While the schedule runs through `plan`; outside of it nothing travels."""
        assert self._plan is None and self._pool is not None
        self._plan, self._next = plan, 0
        self._sent = self._fetched = self._stayed = 0
        self._streams.forget_waits()
        self._leaving, self._coming = {}, {}
        for pack, journey in plan.journeys.items():
            self._leaving.setdefault(journey.away, []).append(pack)
            self._coming.setdefault(journey.back, []).append(pack)
        try:
            yield
            assert self._next == len(plan.slots), "the schedule ended early"
            self._finish_layers()
            assert not self._loads and not self._layers
        finally:
            self._plan = self._open = self._forward = self._done = None
            self._loads, self._layers = {}, {}
            self._pool.give_all()

    def begin(self, *, forward: bool, backward: bool) -> None:
        """The next slot begins; does nothing outside of `running`.

        Args:
            forward, backward: what is in it, which must be what the plan says.
        """
        if self._plan is None:
            return
        index, self._next = self._next, self._next + 1
        slot = self._plan.slots[index]
        given = (slot.forward is not None, slot.backward is not None)
        assert given == (forward, backward), f"slot {index} is {slot}"
        assert self._pool is not None
        self._pool.note_use()
        self._send()
        for pack in self._leaving.get(index, ()):
            self._leave(self._loads[pack])
        if slot.backward in self._loads:
            self._arrive(self._loads.pop(slot.backward), paired=forward)
        for pack in self._coming.get(index, ()):
            self._come(self._loads[pack])
        self._finish_layers()
        self._done = slot.backward
        self._open, self._forward = None, slot.forward
        if slot.forward is None or not self._plan.has_block(slot.forward):
            return
        block = self._pool.take(slot.forward[0])
        if slot.forward in self._plan.by_layer:
            self._layers[slot.forward] = _Layers(block=block)
        else:
            self._open = self._loads[slot.forward] = _Load(block=block)

    def begin_layer(self, hidden: Tensor) -> None:
        """The forward of the next layer begins.

        Args:
            hidden: its input. When the gradient of it is there, the layer's backward has ended.
        """
        pack = self._forward
        if pack is None or pack not in self._layers or not hidden.requires_grad:
            self.begin_part(hidden)
            return
        assert self._plan is not None
        self._send()
        layers = self._layers[pack]
        index = len(layers.loads)
        if index >= LAYERS_THAT_STAY:
            self._leave(layers.loads[-LAYERS_THAT_STAY])
        if index:
            hook = partial(self._end_layer, pack, index)
            hidden.register_hook(hook)  # type: ignore[no-untyped-call]
        load = _Load(block=layers.block)
        layers.loads.append(load)
        self._open = load if index < self._plan.by_layer[pack] - LAYERS_THAT_STAY else None

    def begin_part(self, tensor: Tensor) -> None:
        """What is taken from now on is read before what was taken earlier.

        A pack comes back in parts, so that backward waits for what it reads next and for no more.

        Args:
            tensor: when its gradient is there, the backward of what comes now has ended, and that
                of what came before has not begun.
        """
        load = self._open
        if load is None or not load.parts[-1] or not tensor.requires_grad:
            return
        self._send()
        hook = partial(self._end_part, load, len(load.parts) - 1)
        tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        load.parts.append([])

    def _end_part(self, load: _Load, index: int, gradient: Tensor) -> None:
        """Backward reads the part of this index next."""
        if self._plan is not None and load.arrivals:
            self._read(load, index)

    def _end_layer(self, pack: Pack, index: int, gradient: Tensor) -> None:
        """The backward of a layer has ended: the one before it is read, one more comes back."""
        if self._plan is None:
            return
        loads = self._layers[pack].loads
        if loads[index - 1].is_away:
            self._read(loads[index - 1], -1)
        if index >= 2 and loads[index - 2].is_away:
            with torch.no_grad():
                self._come(loads[index - 2])

    def _finish_layers(self) -> None:
        """Free the block of a pack whose layers have all been read."""
        layers = None if self._done is None else self._layers.pop(self._done, None)
        if layers is None:
            return
        assert self._pool is not None
        # What is first in forward comes back last.
        mark = next((load.arrivals[0] for load in layers.loads if load.is_away), None)
        self._pool.give(layers.block, mark)

    def take(self, tensor: Tensor) -> None:
        """Send the storage of a tensor that backward needs, and forward writes no more.

        It goes with the pack under way, if that one travels; forward may read it to the end of the
        slot. Nobody outside of the pack may need it, and nobody else empty it.

        Args:
            tensor: of any shape; a second view of a storage changes nothing.
        """
        load = self._open
        if load is None:
            return
        assert not isinstance(tensor, torch.nn.Parameter), "parameters stay"
        storage = tensor.untyped_storage()
        nbytes = storage.nbytes()
        if nbytes == 0 or storage._cdata in load.known:
            return
        place = load.block.room(nbytes)
        if place is None:
            self._stayed += nbytes
            return
        load.known.add(storage._cdata)
        load.parts[-1].append((storage, nbytes, place))
        self._sent += nbytes
        here = self._streams.here()
        if here != load.made_on:
            self._send()
        load.made_on = here
        load.unsent.append((storage, place))
        load.unsent_bytes += nbytes
        if load.unsent_bytes >= SEND_BYTES:
            self._send()

    def _send(self) -> None:
        """Queue the copies of what was taken and not sent yet."""
        load = self._open
        if load is None or not load.unsent:
            return
        for storage, place in load.unsent:
            assert storage.nbytes() == place.numel(), EMPTIED
        load.sent = self._streams.send(load.unsent, load.made_on, load.block.free_after)
        load.unsent, load.unsent_bytes = [], 0

    def _leave(self, load: _Load) -> None:
        """Give up the device's copies once they are on the host."""
        if load.parts[0]:
            self._streams.wait(load.sent, "out")
            load.is_away = True
        for storage, nbytes, _ in chain(*load.parts):
            assert storage.nbytes() == nbytes, EMPTIED
            self._streams.empty(storage)

    def _come(self, load: _Load) -> None:
        """Make room on the device and queue the copies back, what is read first in front."""
        for storage, nbytes, _ in chain(*load.parts):
            self._streams.allocate(storage, nbytes)
            self._fetched += nbytes
        if load.parts[0]:
            marks = [
                self._streams.fetch([(storage, place) for storage, _, place in part])
                for part in reversed(load.parts)
            ]
            load.arrivals = marks[::-1]

    def _read(self, load: _Load, index: int) -> None:
        """Backward may read a part; whoever saved its tensors lets go when they are read."""
        self._streams.wait(load.arrivals[index], "in")
        load.parts[index] = []

    def _arrive(self, load: _Load, *, paired: bool) -> None:
        """The backward of a pack begins, and its block is free behind the copies.

        Where a forward runs beside it the whole is waited for: the slot in front was as long as
        both, so that nothing is won by waiting later.
        """
        assert self._pool is not None
        # What is first in forward comes back last.
        last = load.arrivals[0] if load.arrivals else load.block.free_after
        if load.arrivals and paired:
            self._streams.wait(last, "in")
            load.parts, load.arrivals = [], []
        elif load.arrivals:
            self._read(load, -1)
        self._pool.give(load.block, last)
