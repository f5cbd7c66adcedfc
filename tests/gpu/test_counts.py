# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: numbers that the host waits for do not wait for large copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from k2_megatron.platform.engine import counts_to_host

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("strided", [False, True])
def test_counts_are_on_the_host_before_copies_queued_in_front_of_them(strided: bool) -> None:
    out, side = (torch.cuda.Stream() for _ in range(2))
    here = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    there = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
    counts = torch.arange(48, device="cuda").view(2, 24) * 1000
    counts = counts.t() if strided else counts
    # The first calls allocate, and load a kernel, for which the driver waits for the device.
    first = counts_to_host(counts, as_numpy=True), counts_to_host(counts)
    torch.cuda.synchronize()
    del first
    torch.cuda.synchronize()
    with torch.cuda.stream(out):
        for _ in range(4):  # some 80 ms
            there.copy_(here, non_blocking=True)
    copied = out.record_event()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = counts_to_host(counts, record_stream=True)
        array = counts_to_host(counts, as_numpy=True, record_stream=True)
    side.record_event().synchronize()
    assert not copied.query(), "they have waited"
    assert not found.is_cuda and found.is_pinned() and isinstance(array, np.ndarray)
    torch.cuda.synchronize()
    assert torch.equal(found, counts.cpu()) and (array == counts.cpu().numpy()).all()


def test_what_is_on_the_host_stays_as_it_is() -> None:
    given = torch.arange(3)
    assert counts_to_host(given) is given
    assert counts_to_host(None) is None
    assert counts_to_host(torch.empty(0, dtype=torch.int64, device="cuda")).numel() == 0
