# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints a run cannot go on from: it says why, and leaves everything as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.commands import Done, assert_refused, k2, one_rank
from tests.cli.test_training import metrics


@pytest.fixture
def run(own_place: Path, one_rank_run: tuple[Done, Path]) -> Path:
    """A copy of the one-rank run under its own name, with checkpoints of steps 2 and 4."""
    copy = own_place / "runs" / "tiny"
    shutil.copytree(one_rank_run[1], copy)
    return copy


def _files(run: Path) -> dict[Path, bytes]:
    """All a run has left; its lock names the last process that asked for it."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_only_checkpoint_is_damaged(own_place, run):
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    _flip_a_bit(run / "checkpoints" / "step_00000004" / "rank_00000.bin")
    before = _files(run)
    done = one_rank(own_place)
    assert_refused(
        done,
        "no whole one among 1; move the folder away to start anew",
        "step 4 is damaged",
        "runs/tiny/checkpoints/step_00000004/rank_00000.bin: sha256",
    )
    assert _files(run) == before


def test_an_older_checkpoint_serves(own_place, run):
    expected = metrics(run)
    _flip_a_bit(run / "checkpoints" / "step_00000004" / "rank_00000.bin")
    done = one_rank(own_place, "--set=run.stop_after_step=4")
    assert done.code == 0 and done.err == "", done
    assert "warning: step 4 is damaged and not used: " in done.out
    assert "resumed after step 2 from runs/tiny/checkpoints/step_00000002\n" in done.out
    assert metrics(run) == expected  # step 3 and 4 again, and only once


def test_another_order_of_the_data(own_place, run):
    before = _files(run)
    done = one_rank(own_place, "--set=run.seed=6")
    assert_refused(
        done,
        "runs/tiny/checkpoints/step_00000004: it was trained on samples in another order",
        "run.seed",
        "use another run.name to start anew",
    )
    assert _files(run) == before


def test_resume_never_holds_under_a_launcher_too(own_place, run):
    before = _files(run)
    done = one_rank(own_place, "--set=checkpoint.resume=never")
    assert_refused(done, "checkpoint.resume is never, and runs/tiny/checkpoints holds checkpoints")
    assert _files(run) == before


def test_another_model(own_place, run):
    """Two ranks, a pipeline and another width: the width matters, and is told once."""
    before = _files(run)
    done = k2(own_place, "train", "tiny.yaml", "--set=model.moe_ffn_hidden_size=32")
    assert_refused(done)
    head, *lines = done.err.splitlines()
    assert head.endswith("step_00000004/manifest.json: saved by another kind of run:")
    assert lines == [
        "  model.moe_ffn_hidden_size: 16 in the checkpoint, 32 in this run",
        "restore these values to go on, or use another run.name to start anew",
    ]
    after = _files(run)
    _, _, log = after.pop(run / "logs" / "rank_00001.log").decode().partition("\n")
    assert log == done.err
    assert after == before


def test_another_layout_goes_on_and_says_what_is_not_the_same(own_place, run):
    done = k2(own_place, "train", "tiny.yaml", "--set=run.stop_after_step=5")
    assert done.code == 0 and done.err == "", done
    assert "resumed after step 4 from runs/tiny/checkpoints/step_00000004\n" in done.out
    note = (
        "another layout (parallel.pipeline_model_parallel_size 1 -> 2, processes 1 -> 2): random "
        "states belong to ranks and begin anew from run.seed; weights, optimizer, data and "
        "schedule go on\n"
    )
    assert done.out.count(note) == 1, done.out
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]
