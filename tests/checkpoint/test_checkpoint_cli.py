# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`k2-megatron checkpoint inspect PATH`: what it prints and how it fails."""

import argparse
import subprocess
import sys

import pytest
from checkpoint_helpers import save_step

from k2_megatron.checkpoint.cli import add_checkpoint_parser, run_checkpoint
from k2_megatron.errors import CheckpointError


def _run(*arguments):
    parser = argparse.ArgumentParser()
    add_checkpoint_parser(parser.add_subparsers(dest="command"))
    return run_checkpoint(parser.parse_args(["checkpoint", *map(str, arguments)]))


def test_whole_checkpoint_is_described(folder, capsys):
    path = save_step(folder, 100, 0, 1, layout={"tensor_model_parallel_size": 4}).path
    assert _run("inspect", path) == 0
    text = capsys.readouterr().out
    assert "step         100\n" in text
    assert "world size   1\n" in text
    assert "  tensor_model_parallel_size  4\n" in text
    assert "  consumed_samples  800\n" in text
    assert "KiB in 3 files\n" in text
    assert "matrices     1, 1 weight\n" in text
    assert "  ok\n" in text and text.endswith("whole: every checksum is right\n")


def test_damage_is_shown_and_raised(folder, capsys):
    path = save_step(folder, 100, 0, 1).path
    data = bytearray((path / "rank_00000.pt").read_bytes())
    data[-1] ^= 128
    (path / "rank_00000.pt").write_bytes(data)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"rank_00000\.pt: sha256 .* the manifest says"):
        _run("inspect", path)
    text = capsys.readouterr().out
    assert "  DAMAGED\n" in text and "notes.txt  not part of the checkpoint\n" in text
    assert "whole" not in text


def test_folder_of_checkpoints_names_them(folder):
    save_step(folder, 1, 0, 1)
    save_step(folder, 2, 0, 1)
    with pytest.raises(
        CheckpointError, match="holds checkpoints, name one of them: step_00000001, step_00000002"
    ):
        _run("inspect", folder)


def test_missing_path(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no checkpoint here"):
        _run("inspect", tmp_path / "nowhere")


def test_inspecting_needs_no_torch():
    code = "import sys, k2_megatron.checkpoint.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
