# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A save in the background holds what was there when it began, and fails at the next step."""

import errno
import os
import sys
import threading
import time

import torch
from checkpoint_helpers import (
    WORLD_SIZE,
    holdings_of,
    load_matrix,
    matrix_of,
    payload_of,
    saver,
)

from k2_megatron.checkpoint.folder import find, latest, partial_path
from k2_megatron.errors import CheckpointError

PATIENCE_SECONDS = 30


def _start(saving, rank, step):
    holdings = holdings_of(rank, WORLD_SIZE, step)
    found = saving.start(step, holdings, payload_of(rank, step), {})
    holdings[0].values.fill_(-5)  # training goes on
    return found


def _hold_back(name):
    """Let every opening of a file of this name wait until the returned event is set."""
    released = threading.Event()

    def hook(event, arguments):
        if event == "open" and str(arguments[0]).endswith(name):
            assert released.wait(PATIENCE_SECONDS)

    sys.addaudithook(hook)
    return released


def test_what_changes_after_the_start_is_not_saved(folder, two_ranks):
    def task(rank):
        released = _hold_back("rank_00001.bin")
        saving = saver(folder, rank, WORLD_SIZE, asynchronous=True)
        first = _start(saving, rank, 1)
        held_back = [saving.advance() for _ in range(3)]
        named = find(folder)
        released.set()
        done = saving.finish()
        return first, held_back, named, [one.path.name for one in done], saving.advance()

    for found in two_ranks(task):
        assert found == ([], [[], [], []], [], ["step_00000001"], [])
    path = latest(folder)
    assert path is not None and path.name == "step_00000001"
    assert torch.equal(load_matrix(path), matrix_of(1).flatten())


def test_steps_between_name_the_checkpoint(folder, two_ranks):
    def task(rank):
        saving = saver(folder, rank, WORLD_SIZE, asynchronous=True)
        _start(saving, rank, 1)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = saving.advance()
            if found:
                return [one.path.name for one in found]
            time.sleep(0.01)
        return "never"

    assert two_ranks(task) == [["step_00000001"]] * 2


def test_the_next_save_waits_for_the_one_before(folder, two_ranks):
    def task(rank):
        released = _hold_back("step_00000001.partial/rank_00000.bin")
        saving = saver(folder, rank, WORLD_SIZE, asynchronous=True)
        _start(saving, rank, 1)
        threading.Timer(0.2, released.set).start()
        first = _start(saving, rank, 2)
        return [one.path.name for one in (*first, *saving.finish())]

    assert two_ranks(task) == [["step_00000001", "step_00000002"]] * 2
    for step, path in enumerate(find(folder), start=1):
        assert torch.equal(load_matrix(path), matrix_of(step).flatten())


def test_a_failure_is_the_error_of_the_next_step_on_every_rank(folder, two_ranks):
    """And the save before it stays, what was torn goes, and a later save works."""

    def task(rank):
        saving = saver(folder, rank, WORLD_SIZE, asynchronous=True)
        _start(saving, rank, 1)
        saving.finish()
        full = [rank == 1]

        def hook(event, arguments):
            if full[0] and event == "open" and str(arguments[0]).endswith("rank_00001.bin"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

        sys.addaudithook(hook)
        _start(saving, rank, 2)
        try:
            while not saving.advance():
                time.sleep(0.01)
            text = "no error"
        except CheckpointError as error:
            text = str(error)
        torn = partial_path(folder, 2).exists() if rank == 0 else False
        full[0] = False
        _start(saving, rank, 3)
        saving.finish()
        return text, torn

    for text, torn in two_ranks(task):
        assert text.startswith("saving step 2 in ") and not torn
        assert (
            "earlier checkpoints are untouched: rank 1: OSError: [Errno 28] No space left" in text
        )
    assert [path.name for path in find(folder)] == ["step_00000001", "step_00000003"]
    for path in find(folder):
        assert torch.equal(load_matrix(path), matrix_of(int(path.name[-1])).flatten())


def test_waiting_for_a_disk_asks_again_and_again(folder, two_ranks):
    """A rank that has written must not wait in one collective for another's disk."""

    def task(rank):
        released = _hold_back("rank_00001.bin")
        saving = saver(folder, rank, WORLD_SIZE, asynchronous=True)
        _start(saving, rank, 1)
        told = []

        def waiting():
            told.append(len(find(folder)))
            released.set()

        return [one.path.name for one in saving.finish(waiting)], told

    for names, told in two_ranks(task):
        assert names == ["step_00000001"]
        assert told and told[0] == 0  # while the held back rank could not yet have written


def test_second_save_has_the_index_of_the_first(folder, two_ranks):
    """It is encoded once a process."""

    def task(rank):
        saving = saver(folder, rank, WORLD_SIZE)
        for step in (1, 2):
            _start(saving, rank, step)

    two_ranks(task)
    first, second = (path / "index.json" for path in find(folder))
    assert first.read_bytes() == second.read_bytes()
