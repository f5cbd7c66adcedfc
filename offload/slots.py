# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""When activations leave the device and come back, from the order of the pipeline's schedule.

A slot is what a rank does between two looks at the schedule: one forward, one backward, or both
where they overlap. What the forward of slot f made and the backward of slot b reads is

    slot    f          f + 1        f + 2 ... b - 2      b - 1       b
            computed,  last of it   on the host          comes back  read
            leaves     leaves

so that a device holds what it computes and what is under way. Where backward follows so soon that
a pack would be back before it is away, its layers travel one by one within the two slots, if there
are at least three of them: layer i leaves while layer i + 1 is computed, and comes back while the
backward of layer i + 1 runs; the last two stay.

Nothing is learnt from earlier steps:
the order is that of the call, so the number of micro-batches may change from one to the next.

No torch here: the planner counts with the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

# Of a pack that travels by layer: the one that is computed and the one that is under way.
LAYERS_THAT_STAY = 2

# (chunk, micro-batch) of one rank: what leaves and comes back together.
Pack = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What a rank does at once; one of the two may be nothing.

    Attributes:
        forward: the pack that is made.
        backward: the pack that is read, and gone behind the slot.
    """

    forward: Pack | None = None
    backward: Pack | None = None


@dataclass(frozen=True, kw_only=True)
class Journey:
    """The slots at whose begin something happens to a pack.

    Attributes:
        made: its forward begins.
        away: the device's copy is given up.
        back: room for it is made and its copy back begins.
        read: its backward begins.
    """

    made: int
    away: int
    back: int
    read: int


@dataclass(frozen=True, kw_only=True)
class Itinerary:
    """One call of the schedule on one rank.

    Attributes:
        slots: in order.
        stays: (first slot, slot of backward) of every pack.
        journeys: of the packs that leave the device as a whole.
        by_layer: packs whose layers leave it one by one, with their number.
    """

    slots: tuple[Slot, ...]
    stays: Mapping[Pack, tuple[int, int]]
    journeys: Mapping[Pack, Journey]
    by_layer: Mapping[Pack, int] = field(default_factory=dict)

    def has_block(self, pack: Pack) -> bool:
        """Whether anything of a pack leaves the device."""
        return pack in self.journeys or pack in self.by_layer


def slots_of(order: Sequence[tuple[bool, Pack]], num_pairs: int) -> tuple[Slot, ...]:
    """Slots of a schedule.

    Args:
        order: (whether forward, pack) of every operation of one rank.
        num_pairs: of them, the forwards that run together with the backward behind them; they are
            the last ones.
    """
    num_forwards = sum(forward for forward, _ in order)
    slots: list[Slot] = []
    seen, paired = 0, False
    for index, (forward, pack) in enumerate(order):
        if paired:
            paired = False
        elif not forward:
            slots.append(Slot(backward=pack))
        else:
            seen += 1
            paired = seen > num_forwards - num_pairs
            if paired:
                behind, other = order[index + 1]
                assert not behind, "a forward is paired with a forward"
                slots.append(Slot(forward=pack, backward=other))
            else:
                slots.append(Slot(forward=pack))
    return tuple(slots)


def itinerary(slots: Sequence[Slot], num_layers: Sequence[int] = ()) -> Itinerary:
    """Who travels when.

    Args:
        num_layers: of each chunk, whose packs may travel by layer; chunks that are not named have
            too few. Where forward and backward overlap no pack travels by layer.
    """
    made = {slot.forward: index for index, slot in enumerate(slots) if slot.forward is not None}
    read = {slot.backward: index for index, slot in enumerate(slots) if slot.backward is not None}
    assert made.keys() == read.keys(), "a pack is made and not read, or read and not made"
    journeys = {}
    for pack, first in made.items():
        assert first < read[pack], f"{pack} is read before it is made"
        journey = Journey(made=first, away=first + 2, back=read[pack] - 1, read=read[pack])
        if journey.away < journey.back:
            journeys[pack] = journey
    overlapped = any(slot.forward is not None and slot.backward is not None for slot in slots)
    long = {chunk: n for chunk, n in enumerate(num_layers) if n > LAYERS_THAT_STAY}
    return Itinerary(
        slots=tuple(slots),
        stays={pack: (first, read[pack]) for pack, first in made.items()},
        journeys=journeys,
        by_layer={
            pack: long[pack[0]]
            for pack in made
            if pack not in journeys and pack[0] in long and not overlapped
        },
    )


def most_blocks(plan: Itinerary) -> dict[int, int]:
    """Packs of each chunk that have a place on the host at once, at most.

    A place is taken when the forward begins and free again when the backward does; by layer, when
    the backward has ended.
    """
    changes: dict[int, list[tuple[int, int]]] = {}
    for (chunk, _), found in _changes(plan):
        changes.setdefault(chunk, []).extend(found)
    return {chunk: _highest(sorted(found)) for chunk, found in sorted(changes.items())}


def most_blocks_at_once(plan: Itinerary) -> int:
    """The same of all chunks together."""
    changes = sorted(change for _, found in _changes(plan) for change in found)
    return _highest(changes) if changes else 0


def _changes(plan: Itinerary) -> Iterator[tuple[Pack, list[tuple[int, int]]]]:
    """When each pack takes a place and gives it back."""
    for pack, (first, last) in plan.stays.items():
        if plan.has_block(pack):
            yield pack, [(first, 1), (last + (pack in plan.by_layer), -1)]


def _highest(changes: Sequence[tuple[int, int]]) -> int:
    """Highest sum of changes, in order; what goes at a moment goes before what comes."""
    return max(accumulate(change for _, change in changes))


@dataclass(frozen=True, kw_only=True)
class Fullest:
    """The slot in which packs hold most of the device.

    Attributes:
        held: bytes.
        flying: packs of each chunk between forward and backward.
        present: of these, those whose leaving part is on the device; parts of packs that travel by
            layer.
    """

    held: float
    flying: tuple[int, ...]
    present: tuple[float, ...]


def most_on_device(
    plan: Itinerary, staying_bytes: Sequence[float], leaving_bytes: Sequence[float]
) -> Fullest:
    """When packs hold most of the device.

    Of two that overlap, backward gives up a layer for every one that forward makes, so that the
    pack that is read is not counted in their slot.

    Args:
        staying_bytes: of a pack of each chunk, what is on the device from forward to backward.
        leaving_bytes: what is on the device only while it is computed or under way, if the pack
            travels.
    """
    changes: list[list[tuple[int, int, float]]] = [[] for _ in range(len(plan.slots) + 1)]
    for pack, (first, last) in plan.stays.items():
        part = LAYERS_THAT_STAY / plan.by_layer[pack] if pack in plan.by_layer else 1.0
        alone = plan.slots[last].forward is None
        changes[first].append((pack[0], 1, part))
        changes[last + alone].append((pack[0], -1, -part))
        if pack in plan.journeys:
            changes[plan.journeys[pack].away].append((pack[0], 0, -1))
            changes[plan.journeys[pack].back].append((pack[0], 0, 1))
    flying, present = [0] * len(staying_bytes), [0.0] * len(leaving_bytes)
    best = Fullest(held=-1.0, flying=(), present=())
    for slot in changes:
        for chunk, coming, here in slot:
            flying[chunk] += coming
            present[chunk] += here
        held = sum(a * b for a, b in zip(flying, staying_bytes, strict=True))
        held += sum(a * b for a, b in zip(present, leaving_bytes, strict=True))
        if held > best.held or (held == best.held and sum(flying) > sum(best.flying)):
            best = Fullest(held=held, flying=tuple(flying), present=tuple(present))
    return best
