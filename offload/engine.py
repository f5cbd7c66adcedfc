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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from k2_megatron.offload.load import Load
from k2_megatron.offload.pool import Block, HostPool
from k2_megatron.offload.sizes import PoolSize
from k2_megatron.offload.slots import LAYERS_THAT_STAY, Itinerary, Pack
from k2_megatron.offload.streams import Queue, Streams


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


@dataclass(kw_only=True)
class _Layers:
    """A pack whose layers travel one by one, in the order of forward."""

    block: Block
    loads: list[Load] = field(default_factory=list)


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
        self._loads: dict[Pack, Load] = {}
        self._open: Load | None = None
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
        if self._open is not None:
            self._open.send()
        for pack in self._leaving.get(index, ()):
            self._loads[pack].leave()
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
            self._open = self._loads[slot.forward] = Load(block, self._streams)

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
        if self._open is not None:
            self._open.send()
        layers = self._layers[pack]
        index = len(layers.loads)
        if index >= LAYERS_THAT_STAY:
            layers.loads[-LAYERS_THAT_STAY].leave()
        if index:
            hook = partial(self._end_layer, pack, index)
            hidden.register_hook(hook)  # type: ignore[no-untyped-call]
        load = Load(layers.block, self._streams)
        layers.loads.append(load)
        self._open = load if index < self._plan.by_layer[pack] - LAYERS_THAT_STAY else None

    def begin_part(self, tensor: Tensor) -> None:
        """What is taken from now on is read before what was taken earlier.

        A pack comes back in parts, so that backward waits for what it reads next and for no more.

        Args:
            tensor: when its gradient is there, the backward of what comes now has ended, and that
                of what came before has not begun.
        """
        if self._open is not None:
            self._open.begin_part(tensor)

    def read_later(self, until: Tensor) -> AbstractContextManager[None]:
        """What is taken inside is read behind all else that its part has and will have.

        It comes back behind the rest, so that backward of the part begins without it.

        Args:
            until: when its gradient is there, what is taken inside is read next.
        """
        return nullcontext() if self._open is None else self._open.read_later(until)

    def _end_layer(self, pack: Pack, index: int, gradient: Tensor) -> None:
        """The backward of a layer has ended: the one before it is read, one more comes back."""
        if self._plan is None:
            return
        loads = self._layers[pack].loads
        if loads[index - 1].is_away:
            loads[index - 1].read_first()
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
        mark = next((load.last_arrival for load in layers.loads if load.is_away), None)
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
        before = load.nbytes
        self._stayed += load.take(tensor.untyped_storage())
        self._sent += load.nbytes - before

    def _come(self, load: Load) -> None:
        """Queue the copies back."""
        load.come()
        self._fetched += load.nbytes

    def _arrive(self, load: Load, *, paired: bool) -> None:
        """The backward of a pack begins, and its block is free behind the copies.

        Where a forward runs beside it the whole is waited for: the slot in front was as long as
        both, so that nothing is won by waiting later.
        """
        assert self._pool is not None
        last = load.last_arrival or load.block.free_after
        if paired:
            load.read_all()
        else:
            load.read_first()
        self._pool.give(load.block, last)
