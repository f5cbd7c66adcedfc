# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A SLURM for the tests of this folder, and the corpus and configuration of the command line's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import own_place, place, whole_run
from tests.slurm.controller import INSTALL, Slurm, missing_programs, running_slurm

__all__ = ["own_place", "place", "whole_run"]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A real SLURM of two nodes. Where it is not installed CI fails, and others skip."""
    missing = missing_programs()
    if missing:
        reason = f"SLURM is not installed ({', '.join(missing)} not found): {INSTALL}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # Not pytest's own folder, whose path may be too long for munge's socket.
    with (
        tempfile.TemporaryDirectory(prefix="k2-slurm-") as folder,
        running_slurm(Path(folder)) as started,
    ):
        yield started
