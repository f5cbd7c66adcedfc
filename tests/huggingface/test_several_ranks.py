# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Imports and exports that several ranks divide: the same files, and one failure is everyone's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from k2_megatron.checkpoint.folder import partial_path
from k2_megatron.checkpoint.huggingface.importing import open_import
from k2_megatron.checkpoint.inspection import inspect
from k2_megatron.checkpoint.weights import read_weight
from k2_megatron.config.loader import load_config
from k2_megatron.launch.ports import free_port
from tests.distributed.harness import ROOT, run_ranks
from tests.huggingface.releases import CONFIG, ONE_SHARED, OVERRIDES, SHAPES, random_model

BYTES = 40_000
GIVEN = [*OVERRIDES, ONE_SHARED]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    random_model(SHAPES["k2"]).save_pretrained(folder, max_shard_size="100KB")
    return folder


def run_as(
    job: str, world_size: int, folder: Path, fate: tuple[str, str] | None, **given: Any
) -> list[Any]:
    return run_ranks(
        f"tests.huggingface.share_jobs.{job}",
        world_size,
        config_path=str(CONFIG),
        overrides=GIVEN,
        folder=str(folder),
        fate=fate,
        **given,
    )


def import_as(
    world_size: int, release: Path, folder: Path, fate: tuple[str, str] | None = None
) -> list[Any]:
    given = {"release": str(release), "part_bytes": BYTES}
    return run_as("import_share", world_size, folder, fate, **given)


def export_as(world_size: int, folder: Path, fate: tuple[str, str] | None = None) -> list[Any]:
    return run_as("export_share", world_size, folder, fate, shard_bytes=BYTES)


def recorded(folder: Path) -> list[set[str]]:
    """The names in the record of each rank."""
    return [
        set(json.loads(path.read_text())["finished"])
        for path in sorted(folder.glob("*-progress*.json"))
    ]


def assert_imported(found: list[Any], release: Path) -> None:
    """All ranks say the same, and every matrix is the release's."""
    assert all(one == found[0] for one in found), found
    checkpoint = found[0]["checkpoint"]
    assert inspect(checkpoint).problems == ()
    assert found[0]["num_parts"] == len(list(checkpoint.glob("*.bin"))) > 5
    assert not list(checkpoint.glob("*progress*"))
    source = open_import(release, load_config(CONFIG, GIVEN))
    for key, value in source.matrices(source.originals):
        assert torch.equal(read_weight(checkpoint, key), value), key


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_import_goes_on_with_another_number_of_ranks(release: Path, tmp_path: Path) -> None:
    """One of three is killed; two go on, and keep what each of the three had finished."""
    with pytest.raises(AssertionError, match="ended with status -9"):
        import_as(3, release, tmp_path, ("killed", "model.layers.2.mlp.experts.3.up_proj.weight"))
    records = recorded(partial_path(tmp_path, 0))
    assert len(records) >= 2 and sum(map(len, records)) == len(set.union(*records))
    found = import_as(2, release, tmp_path)
    assert_imported(found, release)
    assert 0 < found[0]["kept"] == sum(map(len, records)) < found[0]["num_parts"]


def test_export_is_that_of_one_process_and_goes_on(tmp_path: Path) -> None:
    export_as(1, tmp_path / "one")
    with pytest.raises(AssertionError, match="ended with status -9"):
        export_as(2, tmp_path / "three", ("killed", "layers.2.router"))
    records = recorded(tmp_path / "three")
    found = export_as(3, tmp_path / "three")
    assert all(one == found[0] for one in found), found
    assert found[0]["kept"] == sum(map(len, records))
    assert found[0]["size_bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "one").glob("*.safetensors")
    )
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_one_ranks_full_disk_ends_all_with_its_text(release: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.gate.weight"
    for tensor, told in (
        (name, import_as(3, release, tmp_path / "in", ("full", name))),
        ("output", export_as(3, tmp_path / "out", ("full", "output"))),
    ):
        assert told == told[:1] * 3
        assert re.fullmatch(rf"rank \d: disk of {tensor}: No space left on device", told[0]), told
    assert_imported(import_as(3, release, tmp_path / "in"), release)
    assert export_as(3, tmp_path / "out")[0]["kept"] > 0


def commands(*arguments: object) -> list[tuple[int, str, str]]:
    """Exit code and output of the command on each of two ranks, as a launcher starts them."""
    port, ranks = free_port(), []
    for rank in range(2):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in given.items()}}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "k2_megatron", "checkpoint", *map(str, arguments)],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=100) for process in ranks]
    return [(process.returncode, *text) for process, text in zip(ranks, outputs, strict=True)]


def test_commands_under_a_launcher(release: Path, tmp_path: Path) -> None:
    """Rank 0 alone tells what was done; every rank ends with the exit code."""
    sets = [f"--set={one}" for one in (*GIVEN, f"run.folder={tmp_path}")]
    step = tmp_path / "small" / "checkpoints" / "step_00000000"
    first, second = commands("import-hf", release, CONFIG, *sets, "--part-size=100KB")
    assert (first[0], *second[:2]) == (0, 0, ""), (first, second)
    assert "91 tensors in " in first[1] and first[1].endswith(f"written: {step}\n")
    first, second = commands("export-hf", step, tmp_path / "out", "--dtype=fp32")
    assert (first[0], *second[:2]) == (0, 0, ""), (first, second)
    assert first[1].endswith(f"written: {tmp_path / 'out'}\n")
    assert not open_import(tmp_path / "out", load_config(CONFIG, GIVEN)).notes
    first, second = commands("export-hf", step, tmp_path / "out")
    assert (first[0], second[0]) == (2, 2), (first, second)
    assert f"{tmp_path / 'out'}: not empty, and no export that was interrupted" in first[2]
    assert "not empty" not in second[2]
