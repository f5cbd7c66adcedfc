# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What rank 0 alone finds out in a run's folder: all ranks end with it, and it is told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from k2_megatron.checkpoint.manifest import read_manifest, write_manifest
from tests.cli.commands import Done, assert_refused, k2
from tests.cli.test_bad_checkpoint import run

__all__ = ["run"]


def _assert_all_refused(done: Done, run: Path, text: str) -> None:
    """Each of the two ranks has said it, and nothing else."""
    assert_refused(done, text)
    log = (run / "logs" / "rank_00001.log").read_text()
    assert log.endswith(done.err) and log.count("k2-megatron: ") == 1, log
    assert "Traceback" not in log, log


def test_checkpoint_of_another_format_version(own_place, run):
    """Rank 0 said so, and rank 1, which waited for it, ended by a traceback."""
    newest = run / "checkpoints" / "step_00000004"
    manifest = read_manifest(newest)
    write_manifest(newest, type(manifest)(**{**vars(manifest), "format_version": 3}))
    done = k2(own_place, "train", "tiny.yaml")
    text = f"{newest.relative_to(own_place)}/manifest.json: format version 3, this program reads "
    _assert_all_refused(done, run, text)


@pytest.mark.parametrize("name", [".lock", "resolved_config.yaml", "metrics.jsonl"])
def test_file_that_cannot_be_written(own_place, name):
    """Rank 0 ended by a traceback, and so did rank 1, by another."""
    run = own_place / "runs" / "tiny"
    (run / name).mkdir(parents=True)
    done = k2(own_place, "train", "tiny.yaml")
    _assert_all_refused(done, run, f"runs/tiny/{name}: Is a directory")
    assert done.err.startswith("k2-megatron: rank 0: runs/tiny/"), done.err
