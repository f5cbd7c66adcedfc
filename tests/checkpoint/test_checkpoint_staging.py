# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The host memory of a save in the background: page-locked where asked, as large as the file."""

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_helpers import holdings_of

from k2_megatron.checkpoint.data_file import FilePlan, Holding, Staging, plan_file
from k2_megatron.parallel.model_space import Region


class Driver:
    """Stands for CUDA's, which a machine without a GPU lacks: notes what is locked."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.refuses = False

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if self.refuses:
            return 2
        assert flags == 0 and address not in self.locked
        self.locked[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    return found


def several(count: int) -> tuple[list[Holding], FilePlan]:
    """Holdings whose bytes are no power of two."""
    region = Region(key="m", rows=(0, 5), cols=(0, 1001))
    holdings = [
        Holding(kind=f"kind{index}", regions=(region,), values=torch.randn(5 * 1001))
        for index in range(count)
    ]
    return holdings, plan_file(holdings)


def bytes_of(pieces: Any) -> bytes:
    return b"".join(bytes(piece) for piece in pieces)


def test_no_more_is_locked_than_the_file_has(driver: Driver) -> None:
    """PyTorch's own allocator rounds up to a power of two: 70 GB would take 128 GiB."""
    staging = Staging(pinned=True)
    for count in (2, 2, 5):  # kept for the second save, replaced for a larger one
        holdings, plan = several(count)
        expected = b"".join(
            holding.values.numpy().tobytes().ljust(plan.offsets[1], b"\0") for holding in holdings
        )
        assert bytes_of(staging.fill(holdings, plan)) == expected
        assert list(driver.locked.values()) == [plan.size_bytes]
    del staging
    gc.collect()
    assert driver.locked == {}


def test_a_save_locks_nothing_more_where_memory_is_reserved(driver: Driver) -> None:
    staging = Staging(pinned=True)
    holdings, plan = several(3)
    staging.reserve(plan.size_bytes)
    before = dict(driver.locked)
    assert list(before.values()) == [plan.size_bytes]
    staging.fill(holdings, plan)
    assert driver.locked == before


def test_memory_that_cannot_be_locked_is_an_error_and_later_saves_work(driver: Driver) -> None:
    staging = Staging(pinned=True)
    holdings, plan = several(3)
    driver.refuses = True
    with pytest.raises(RuntimeError, match=f"cudaHostRegister: 2 for {plan.size_bytes} bytes"):
        staging.fill(holdings, plan)
    driver.refuses = False
    staging.fill(holdings, plan)
    assert list(driver.locked.values()) == [plan.size_bytes]


def test_ordinary_memory_without_a_gpu() -> None:
    staging = Staging(pinned=False)
    holdings = holdings_of(0, 1, 3)
    plan = plan_file(holdings)
    assert bytes_of(staging.fill(holdings, plan)) == holdings[0].values.numpy().tobytes()
