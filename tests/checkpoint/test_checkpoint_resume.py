# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run goes on from: the newest whole one, the same on every rank."""

import pytest
from checkpoint_helpers import IDENTITY, WORLD_SIZE, save_step

from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.resume import find_resumable
from k2_megatron.errors import CheckpointError


def _resumable(folder, rank, world_size=WORLD_SIZE, identity=IDENTITY, before=None):
    return find_resumable(folder, Ranks(rank, world_size), identity, before=before)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def three_steps(folder, two_ranks):
    """Checkpoints of steps 10, 20 and 30 by two ranks."""
    two_ranks(
        lambda rank: [save_step(folder, step, rank, WORLD_SIZE).path for step in (10, 20, 30)]
    )
    return folder


def test_nothing_saved_yet(folder):
    found = _resumable(folder, 0, world_size=1)
    assert found.path is None and found.warnings == ()


def test_newest_is_chosen(three_steps, two_ranks):
    for found in two_ranks(lambda rank: _resumable(three_steps, rank)):
        assert found.path == three_steps / "step_00000030"
        assert found.warnings == ()


def test_only_steps_before_a_bound_are_looked_at(three_steps, two_ranks):
    for found in two_ranks(lambda rank: _resumable(three_steps, rank, before=30)):
        assert found.path == three_steps / "step_00000020"
    _flip(three_steps / "step_00000010" / "index.json")
    for error in two_ranks(lambda rank: _resumable(three_steps, rank, before=20)):
        assert isinstance(error, CheckpointError)
        told = "to go on from, before step 20: no whole one among 1; step 10 is damaged"
        assert told in str(error)


@pytest.mark.parametrize("name", ["index.json", "rank_00000.bin", "rank_00001.pt"])
def test_damage_seen_by_one_rank_sends_all_to_the_older_one(three_steps, two_ranks, name):
    _flip(three_steps / "step_00000030" / name)
    for found in two_ranks(lambda rank: _resumable(three_steps, rank)):
        assert found.path == three_steps / "step_00000020"
        (warning,) = found.warnings
        assert warning.startswith("step 30 is damaged and not used: ")
        assert f"step_00000030/{name}: sha256 " in warning


def test_ranks_damaged_at_different_steps_meet_at_the_oldest(three_steps, two_ranks):
    """Rank 0 alone would take 20 and rank 1 alone would take 30: a mix of steps."""
    _flip(three_steps / "step_00000030" / "index.json")  # rank 0's share
    (three_steps / "step_00000020" / "rank_00000.bin").unlink()  # rank 1's share
    for found in two_ranks(lambda rank: _resumable(three_steps, rank)):
        assert found.path == three_steps / "step_00000010"
        assert [text.split(" is damaged")[0] for text in found.warnings] == ["step 30", "step 20"]


def test_torn_save_is_not_used_and_told(three_steps, two_ranks):
    (three_steps / "step_00000040.partial").mkdir()
    for found in two_ranks(lambda rank: _resumable(three_steps, rank)):
        assert found.path == three_steps / "step_00000030"
        (warning,) = found.warnings
        assert "step_00000040.partial: a save that did not finish, not used" in warning


def test_all_damaged_is_an_error_on_every_rank(three_steps, two_ranks):
    """Starting again from step 0 would throw the run away without a word."""
    for step in (10, 20, 30):
        (three_steps / f"step_000000{step}" / "manifest.json").write_text("{}")
    for error in two_ranks(lambda rank: _resumable(three_steps, rank)):
        assert isinstance(error, CheckpointError)
        assert "no whole one among 3; move the folder away to start anew" in str(error)
        assert "step 10 is damaged" in str(error) and "step 30 is damaged" in str(error)


def test_another_identity_is_an_error_not_an_older_checkpoint(three_steps, two_ranks):
    other = {**IDENTITY, "optimizer": "muonclip"}
    for error in two_ranks(lambda rank: _resumable(three_steps, rank, identity=other)):
        assert isinstance(error, CheckpointError)
        assert "optimizer: adamw in the checkpoint, muonclip in this run" in str(error)
        assert "step_00000030" in str(error)


def test_another_world_size_goes_on(three_steps):
    assert _resumable(three_steps, 0, world_size=1).path == three_steps / "step_00000030"


def test_run_that_went_back_saves_over_the_damaged_step(three_steps, two_ranks):
    _flip(three_steps / "step_00000030" / "rank_00001.pt")
    two_ranks(lambda rank: save_step(three_steps, 30, rank, WORLD_SIZE).path)
    for found in two_ranks(lambda rank: _resumable(three_steps, rank)):
        assert found.path == three_steps / "step_00000030" and found.warnings == ()
