# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Saves that fail or die: full disk, kill -9 at any moment; what was saved before stays whole."""

import errno
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import FORK, WORLD_SIZE, payload_of, save_step

from k2_megatron.checkpoint.folder import find, step_path
from k2_megatron.checkpoint.inspection import inspect
from k2_megatron.checkpoint.rank_file import write_rank_file
from k2_megatron.errors import CheckpointError

FILE_EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def _assert_whole(folder: Path, at_least: int) -> None:
    """Every named checkpoint is sound to the last bit, `latest` names one, none has been lost."""
    for path in folder.glob("step_*"):
        if path.suffix != ".partial":
            assert inspect(path).problems == (), path
    steps = [int(path.name.removeprefix("step_")) for path in find(folder)]
    assert steps and max(steps) >= at_least
    assert folder / (folder / "latest").read_text().strip() in find(folder)


def _limit_file_size(num_bytes: int) -> None:
    """Let the kernel refuse to write past `num_bytes` of any file in this process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def _refuse_to_open(name: str) -> None:
    """Let every later opening of a file of this name fail as a full disk would."""

    def hook(event, arguments):
        if event == "open" and str(arguments[0]).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

    sys.addaudithook(hook)


def test_full_disk_is_the_error_of_the_disk():
    """torch's zip writer reports a wrong position instead; small writes fail only when flushed."""
    for payload in (payload_of(0, 1), {"big": torch.zeros(100_000)}):
        with pytest.raises(OSError) as caught:
            write_rank_file(Path("/dev/full"), payload)
        assert str(caught.value) == "[Errno 28] No space left on device: '/dev/full'"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["waiting", "asynchronous"])
@pytest.mark.parametrize(("num_bytes", "name"), [(0, "bin"), (100, "bin"), (200_000, "pt")])
def test_one_rank_with_a_full_disk_fails_all_and_harms_nothing(
    folder, two_ranks, num_bytes, name, asynchronous
):
    two_ranks(lambda rank: save_step(folder, 1, rank, WORLD_SIZE).path)

    def task(rank):
        if rank == 1:
            _limit_file_size(num_bytes)
        return save_step(
            folder,
            2,
            rank,
            WORLD_SIZE,
            payload={"big": torch.zeros(100_000)},
            asynchronous=asynchronous,
        )

    for error in two_ranks(task):
        assert isinstance(error, CheckpointError)
        text = str(error)
        assert "saving step 2 in " in text and "earlier checkpoints are untouched" in text
        assert "rank 1: OSError: [Errno 27] File too large: '" in text and "rank 0" not in text
        assert text.endswith(f"step_00000002.partial/rank_00001.{name}'")
    _assert_whole(folder, at_least=1)
    assert sorted(file.name for file in folder.iterdir()) == ["latest", "step_00000001"]
    two_ranks(lambda rank: save_step(folder, 2, rank, WORLD_SIZE).path)
    _assert_whole(folder, at_least=2)


@pytest.mark.parametrize("name", ["manifest.json.tmp", "latest.tmp"])
def test_full_disk_while_rank_0_names_the_checkpoint(folder, two_ranks, name):
    two_ranks(lambda rank: save_step(folder, 1, rank, WORLD_SIZE).path)

    def task(rank):
        if rank == 0:
            _refuse_to_open(name)
        return save_step(folder, 2, rank, WORLD_SIZE)

    for error in two_ranks(task):
        assert isinstance(error, CheckpointError)
        assert "rank 0: OSError: [Errno 28] No space left on device" in str(error)
        assert name in str(error)
    _assert_whole(folder, at_least=1)


def test_file_that_rank_0_cannot_see(folder, two_ranks, monkeypatch):
    """Each node has a disk of its own: rank 1's file is not where rank 0 names the checkpoint."""

    def task(rank):
        if rank == 1:
            os.chdir(elsewhere)
        return save_step(Path("checkpoints"), 1, rank, WORLD_SIZE)

    folder.mkdir(parents=True)
    elsewhere = folder / "elsewhere"
    (elsewhere / "checkpoints" / "step_00000001.partial").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for error in two_ranks(task):
        assert isinstance(error, CheckpointError)
        assert "rank_00001.bin: missing; the manifest lists it with" in str(error)


def _die_at_event(folder: Path, number: int, step: int) -> None:
    """Save, and be killed at the `number`-th file operation under `folder`."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    save_step(folder, step, 0, 1, keep_last=1)


@pytest.mark.parametrize("again", [False, True], ids=["next step", "the same step again"])
def test_kill_at_every_file_operation_leaves_a_whole_checkpoint(folder, again):
    """Opens, renames, removals: a save is killed before each in turn until one gets through."""
    save_step(folder, 1, 0, 1)
    save_step(folder, 2, 0, 1)
    for number in range(1, 200):
        step = 2 if again else 2 + number
        before = max(int(path.name.removeprefix("step_")) for path in find(folder))
        child = FORK.Process(target=_die_at_event, args=(folder, number, step))
        child.start()
        child.join(60)
        # Two renames replace a checkpoint of the same step; between them the older one serves.
        _assert_whole(folder, at_least=1 if again else before)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        if again:
            save_step(folder, 1, 0, 1)
            save_step(folder, 2, 0, 1)
    assert number > 8, "the save got through before its files could have been written"
    assert find(folder) == [step_path(folder, step)]
    assert sorted(file.name for file in folder.iterdir()) == [
        "latest",
        step_path(folder, step).name,
    ]


def _save_for_ever(folder: Path) -> None:
    for step in range(2, 100_000):
        payload = {"weights": torch.full((250_000,), float(step)), "step": step}
        save_step(folder, step, 0, 1, keep_last=2, payload=payload)


def test_kill_at_random_moments_leaves_a_whole_checkpoint(folder):
    save_step(folder, 1, 0, 1)
    moments = random.Random(1234)
    for _ in range(6):
        child = FORK.Process(target=_save_for_ever, args=(folder,))
        child.start()
        time.sleep(0.05 + 0.3 * moments.random())
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        _assert_whole(folder, at_least=1)


def test_rank_that_is_killed_during_a_save_leaves_the_earlier_checkpoint(folder, two_ranks):
    two_ranks(lambda rank: save_step(folder, 1, rank, WORLD_SIZE).path)

    def die_at_own_file(event, arguments):
        if event == "open" and str(arguments[0]).endswith("rank_00001.pt"):
            os.kill(os.getpid(), signal.SIGKILL)

    def task(rank):
        if rank == 1:
            sys.addaudithook(die_at_own_file)
        try:
            save_step(folder, 2, rank, WORLD_SIZE)
        except RuntimeError as error:
            return f"gloo: {error}"
        return "saved"

    survivor, victim = two_ranks(task)
    assert survivor.startswith("gloo: ") and isinstance(victim, EOFError)
    _assert_whole(folder, at_least=1)
    assert [path.name for path in find(folder)] == ["step_00000001"]
