# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""When copies to the host are queued, and behind what."""

from __future__ import annotations

import pytest
import torch

from k2_megatron.offload.engine import OffloadEngine
from k2_megatron.offload.streams import PlainStreams
from tests.offload.pipelines import in_a_row, run, sizes


def test_block_is_written_again_only_behind_what_was_read_from_it() -> None:
    """The mark of the copy back goes with the block to the next copy out."""
    given = []

    class Watching(PlainStreams):
        def send(self, pairs, behind, after):
            given.append(after)
            return super().send(pairs, behind, after)

        def fetch(self, pairs):
            super().fetch(pairs)
            return "fetched"

    engine = OffloadEngine(Watching())
    plan = in_a_row(4)
    engine.provide(sizes(plan))
    for _ in range(2):
        run(engine, plan, lambda: [torch.randn(4)])
    assert given == [None] * 4 + ["fetched"] * 4


def test_small_tensors_are_sent_together_and_large_ones_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy costs the host more than it costs the copy engine."""
    monkeypatch.setattr("k2_megatron.offload.load.SEND_BYTES", 256)
    sent: list[tuple[int, ...]] = []

    class Watching(PlainStreams):
        def send(self, pairs, behind, after):
            sent.append(tuple(place.numel() for _, place in pairs))
            return super().send(pairs, behind, after)

    engine = OffloadEngine(Watching())
    plan = in_a_row(4)
    engine.provide(sizes(plan))
    with engine.running(plan):
        alive = []
        for _ in range(4):
            engine.begin(forward=True, backward=False)
            hidden = torch.zeros(1, requires_grad=True) * 1
            alive += [torch.zeros(n, dtype=torch.uint8) for n in (32, 300, 64, 32, 16)]
            for tensor in alive[-5:-1]:
                engine.take(tensor)
            engine.begin_part(hidden)
            engine.take(alive[-1])
            assert sent == [(32, 300), (64, 32)]
            sent.clear()
            engine.begin_part(hidden)
            assert sent == [(16,)]
            sent.clear()
        for _ in range(4):
            engine.begin(forward=False, backward=True)


def test_copies_wait_for_the_stream_that_computed_what_they_copy() -> None:
    """Overlapped micro-batches compute on a stream of their own."""
    sent = []

    class TwoStreams(PlainStreams):
        current = "first"

        def here(self):
            return self.current

        def send(self, pairs, behind, after):
            sent.append((behind, len(pairs)))
            return super().send(pairs, behind, after)

    streams = TwoStreams()
    engine = OffloadEngine(streams)
    plan = in_a_row(4)
    engine.provide(sizes(plan))
    with engine.running(plan):
        alive = [torch.zeros(4) for _ in range(3)]
        engine.begin(forward=True, backward=False)
        engine.take(alive[0])
        streams.current = "second"
        engine.take(alive[1])
        engine.take(alive[2])
        streams.current = "first"
        for forward in (True,) * 3 + (False,) * 4:
            engine.begin(forward=forward, backward=not forward)
    assert sent == [("first", 1), ("second", 2)]
