# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Host memory for a GPU: as many bytes as asked for, of this process alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from k2_megatron.offload.pages import pages

NBYTES = 5 * 2**20 + 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_zero_and_not_copied_by_a_fork() -> None:
    memory = pages(NBYTES)
    assert memory.numel() == NBYTES and not memory.any()
    assert pages(0).numel() == 0
    at = memory.data_ptr()
    inside, flags, resident = False, "", 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= at < end
        elif inside and first == "VmFlags:":
            flags = line
        elif inside and first == "Rss:":
            resident = int(line.split()[1]) * 1024
    assert " dc" in flags, flags  # do not copy on fork
    assert resident >= NBYTES  # touched: locked pages cannot be placed later
