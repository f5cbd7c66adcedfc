# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a user reads first: help and version, the same by either name of the command."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.commands import k2


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--help"], ["train", "validate", "data", "checkpoint", "--version"]),
        (["train", "--help"], ["CONFIG", "--set SECTION.KEY=VALUE", "--nproc N", "Exit codes"]),
        (["plan", "--help"], ["CONFIG", "--gpus N[,N...]", "--fit", "--json", "--html FILE"]),
        (["validate", "--help"], ["CONFIG", "--set SECTION.KEY=VALUE"]),
        (["data", "--help"], ["prepare", "tokenise text and JSONL"]),
        (["data", "prepare", "--help"], ["INPUT", "--output PREFIX", "--tokenizer", "--workers N"]),
        (["checkpoint", "--help"], ["inspect"]),
        (["checkpoint", "inspect", "--help"], ["PATH", "step_NNNNNNNN"]),
    ],
)
def test_help_names_all_there_is(tmp_path, arguments, texts):
    done = k2(tmp_path, *arguments)
    command = " ".join(["k2-megatron", *arguments[:-1]])
    assert done.code == 0 and done.err == ""
    assert done.out.startswith(f"usage: {command} ")
    for text in texts:
        assert text in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_version(tmp_path):
    done = k2(tmp_path, "--version")
    assert (done.code, done.out) == (0, f"k2-megatron {version('k2-megatron')}\n")


def test_script_and_module_are_the_same_command(tmp_path):
    script = Path(sys.executable).with_name("k2-megatron")
    for arguments in (["--help"], ["data", "--help"], ["train"], ["validate", "nowhere.yaml"]):
        by_script = subprocess.run(
            [script, *arguments], cwd=tmp_path, env={"COLUMNS": "100"}, capture_output=True
        )
        by_module = k2(tmp_path, *arguments)
        assert by_script.returncode == by_module.code
        assert by_script.stdout.decode() == by_module.out
        assert by_script.stderr.decode() == by_module.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian' (choose from"),
        (["train"], "the following arguments are required: CONFIG"),
        (["data"], "the following arguments are required"),
        (["data", "prepare"], "the following arguments are required: --output"),
        (["train", "tiny.yaml", "--gpus", "2"], "unrecognized arguments: --gpus 2"),
        (["train", "tiny.yaml", "--nproc", "0"], "--nproc: given '0'; allowed: an integer >= 1"),
        (["train", "tiny.yaml", "--nproc", "-2"], "--nproc: given '-2'; allowed: an integer >= 1"),
        (["train", "tiny.yaml", "--nproc", "two"], "--nproc: given 'two'; allowed: an integer"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, arguments, text):
    done = k2(tmp_path, *arguments)
    assert done.code == 2 and done.out == ""
    assert text in done.err and "Traceback" not in done.err


def test_validate_tells_the_numbers_of_processes(place):
    done = k2(place, "validate", "tiny.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "tiny.yaml is valid\nparameters: 32,596, active in a token 29,524\n"
        "numbers of processes that fit: 2, 4\n"
    )
