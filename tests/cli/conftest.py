# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A corpus made once by the real command, and runs whose results several tests look at."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import CONFIG, Done, k2, one_rank


def _write_text(folder: Path) -> None:
    """Forty documents of 8 KB: words that repeat, so that a small model can learn something."""
    chance = random.Random(0)
    words = ["".join(chance.choices("aeinorst", k=chance.randint(2, 7))) for _ in range(200)]
    folder.mkdir()
    for index in range(40):
        text = " ".join(chance.choices(words, k=1500))
        (folder / f"{index:02}.txt").write_text(text)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with corpus/bytes.{bin,idx,json} and tiny.yaml, shared by all tests."""
    folder = tmp_path_factory.mktemp("cli")
    _write_text(folder / "text")
    made = k2(folder, "data", "prepare", "text", "--output", "corpus/bytes", "--workers", "1")
    assert made.code == 0, made
    shutil.copy(CONFIG, folder)
    return folder


@pytest.fixture
def own_place(place: Path, tmp_path: Path) -> Path:
    """A working directory of one test, with its own copy of corpus and configuration."""
    shutil.copytree(place / "corpus", tmp_path / "corpus")
    shutil.copy(CONFIG, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def whole_run(place: Path) -> tuple[Done, Path]:
    """A run of two ranks from the first step to the last, and its folder."""
    done = k2(place, "train", "tiny.yaml", "--set=run.name=whole")
    assert done.code == 0, done
    return done, place / "runs" / "whole"


@pytest.fixture(scope="session")
def one_rank_run(place: Path) -> tuple[Done, Path]:
    """A run of one rank under plain variables, stopped after step 4, and its folder."""
    done = one_rank(place, "--set=run.name=one-rank", "--set=run.stop_after_step=4")
    assert done.code == 0, done
    return done, place / "runs" / "one-rank"
