# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading over two gloo processes and over one: what is written comes back."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_helpers import (
    IDENTITY,
    LAYOUT,
    WORLD_SIZE,
    load_matrix,
    matrix_of,
    payload_of,
    save_step,
)

from k2_megatron.checkpoint.folder import find, latest, list_steps, remove_from, step_path
from k2_megatron.checkpoint.manifest import read_manifest, write_manifest
from k2_megatron.checkpoint.rank_file import read_rank_file
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.resume import verify_share
from k2_megatron.errors import CheckpointError


def _assert_same(found: object, expected: object) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == expected.dtype and found.device.type == "cpu"
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for key in expected:
            _assert_same(found[key], expected[key])
    else:
        assert found == expected


@pytest.fixture
def saved(folder, two_ranks) -> Path:
    """A checkpoint of step 100 by two ranks."""
    return two_ranks(lambda rank: save_step(folder, 100, rank, WORLD_SIZE).path)[0]


def _load(path, rank=0, identity=IDENTITY):
    """Verify all files, and read those of one rank's own."""
    verify_share(path, Ranks(0, 1), identity)
    return read_rank_file(path / f"rank_{rank:05d}.pt")


def test_two_ranks_save_and_each_gets_its_own_back(folder, two_ranks):
    paths = two_ranks(lambda rank: save_step(folder, 100, rank, WORLD_SIZE).path)
    assert paths == [folder / "step_00000100"] * 2
    loaded = two_ranks(lambda rank: _load(paths[0], rank))
    for rank in range(WORLD_SIZE):
        _assert_same(loaded[rank], payload_of(rank, 100))
    parts = two_ranks(lambda rank: load_matrix(paths[0], rank, WORLD_SIZE))
    assert torch.equal(torch.cat(parts), matrix_of(100).flatten())
    assert torch.equal(load_matrix(paths[0]), matrix_of(100).flatten())
    assert sorted(file.name for file in paths[0].iterdir()) == [
        "index.json",
        "manifest.json",
        "rank_00000.bin",
        "rank_00000.pt",
        "rank_00001.bin",
        "rank_00001.pt",
    ]
    assert sorted(file.name for file in folder.iterdir()) == ["latest", "step_00000100"]
    assert (folder / "latest").read_text() == "step_00000100\n"


def test_one_rank_needs_no_process_group(folder):
    assert not torch.distributed.is_initialized()
    report = save_step(folder, 7, 0, 1)
    _assert_same(_load(report.path), payload_of(0, 7))
    names = ("index.json", "rank_00000.bin", "rank_00000.pt")
    assert report.size_bytes == sum((report.path / name).stat().st_size for name in names)
    assert report.removed == () and report.warnings == ()


def test_manifest_says_what_is_in_the_folder(saved):
    manifest = read_manifest(saved)
    assert (manifest.step, manifest.world_size) == (100, WORLD_SIZE)
    assert manifest.layout == LAYOUT and manifest.identity == IDENTITY
    assert manifest.metadata == {"consumed_samples": 800}
    for name, entry in manifest.files.items():
        data = (saved / name).read_bytes()
        assert entry.size_bytes == len(data)
        assert entry.sha256 == hashlib.sha256(data).hexdigest()


def test_loading_runs_no_code_from_the_file(saved):
    """A pickle that would call a function is refused although its checksum is right."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (saved / "touched",))

    torch.save({"evil": Evil()}, saved / "rank_00000.pt")
    manifest = read_manifest(saved)
    data = (saved / "rank_00000.pt").read_bytes()
    entry = type(manifest.files["rank_00000.pt"])(
        size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    manifest.files["rank_00000.pt"] = entry
    write_manifest(saved, manifest)
    with pytest.raises(CheckpointError, match=r"rank_00000\.pt: cannot be read"):
        _load(saved)
    assert not (saved / "touched").exists()


FILES = ("index.json", "rank_00000.bin", "rank_00001.bin", "rank_00001.pt")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0, 50, -1])
def test_flipped_bit_is_found(saved, name, where):
    path = saved / name
    data = bytearray(path.read_bytes())
    expected = hashlib.sha256(data).hexdigest()
    data[where] ^= 1
    path.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(
        CheckpointError,
        match=rf"{re.escape(name)}: sha256 {found} found, the manifest says {expected}",
    ):
        _load(saved)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_found(saved, name):
    path = saved / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(
        CheckpointError,
        match=rf"{re.escape(name)}: {len(data) - 1} bytes found, the manifest says {len(data)}",
    ):
        _load(saved)
    assert find(saved.parent) == [] and latest(saved.parent) is None


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_found(saved, name):
    (saved / name).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(name)}: missing; the manifest lists it"
    ):
        _load(saved)
    assert find(saved.parent) == []


def test_missing_manifest_is_found(saved):
    (saved / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: missing"):
        _load(saved)
    assert find(saved.parent) == []


def test_missing_checkpoint_is_named(folder):
    with pytest.raises(CheckpointError, match="step_00000005: no checkpoint here"):
        _load(folder / "step_00000005")


def test_every_flipped_bit_of_the_manifest_reads_as_damage(saved):
    """Not as another step, world size or layout: one digit is one bit from another."""
    path = saved / "manifest.json"
    whole = path.read_bytes()
    original = read_manifest(saved)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        try:
            manifest = read_manifest(saved)
        except CheckpointError as error:
            assert "manifest.json: " in str(error)
            assert "format version" not in str(error)
        else:  # white space between the values
            assert manifest == original


def test_manifest_that_is_not_json(saved):
    (saved / "manifest.json").write_text("[1,")
    with pytest.raises(CheckpointError, match=r"manifest\.json: not readable as JSON"):
        _load(saved)
    (saved / "manifest.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="its own checksum says None"):
        _load(saved)


def test_other_identity_is_refused_with_every_difference(saved):
    other = {"model.hidden_size": 12, "dtype": "bf16"}
    with pytest.raises(CheckpointError) as caught:
        _load(saved, identity=other)
    text = str(caught.value)
    assert text.startswith(f"{saved / 'manifest.json'}: saved by another kind of run:\n")
    assert "model.hidden_size: 6 in the checkpoint, 12 in this run" in text
    assert "optimizer: adamw in the checkpoint, nothing in this run" in text
    assert "dtype: nothing in the checkpoint, bf16 in this run" in text


def test_identity_with_tuples_equals_itself_after_json(folder):
    identity = {"order": ("tp", "cp", "ep"), "sizes": {"tp": 1}}
    report = save_step(folder, 1, 0, 1, identity=identity)
    assert _load(report.path, identity=identity)["step"] == 1


def test_other_format_version_is_refused(saved):
    manifest = read_manifest(saved)
    write_manifest(saved, type(manifest)(**{**vars(manifest), "format_version": 1}))
    assert json.loads((saved / "manifest.json").read_text())["format_version"] == 1
    with pytest.raises(
        CheckpointError, match="format version 1, this program reads and writes version 2"
    ):
        _load(saved)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float64(1.0), "numpy.float64"),
        (np.arange(3), "numpy.ndarray"),
        (Path("a"), "pathlib"),
    ],
)
def test_what_could_not_be_loaded_is_refused_before_it_is_saved(folder, value, name):
    with pytest.raises(CheckpointError, match=rf"payload\['a'\]\[1\] is a {name}"):
        save_step(folder, 1, 0, 1, payload={"a": [0, value]})
    assert list(folder.iterdir()) == []


def test_ranks_that_disagree_are_refused(folder, two_ranks):
    errors = two_ranks(lambda rank: save_step(folder, 5 + rank, rank, WORLD_SIZE))
    for error in errors:
        assert "the ranks disagree on step, layout, identity or metadata: rank 0 has (5," in str(
            error
        )
    assert list(folder.iterdir()) == []


def test_saving_the_same_step_again_replaces_it(folder):
    save_step(folder, 5, 0, 1)
    report = save_step(folder, 5, 0, 1, payload={"second": 1})
    assert _load(report.path) == {"second": 1}
    assert sorted(file.name for file in folder.iterdir()) == ["latest", "step_00000005"]


def test_what_an_earlier_attempt_left_is_not_taken_along(folder):
    """It may come from more ranks than this run has."""
    torn = folder / "step_00000005.partial"
    torn.mkdir(parents=True)
    (torn / "rank_00007.pt").write_bytes(b"torn")
    report = save_step(folder, 5, 0, 1)
    assert sorted(path.name for path in report.path.iterdir()) == [
        "index.json",
        "manifest.json",
        "rank_00000.bin",
        "rank_00000.pt",
    ]


def test_keep_last_prunes_the_oldest_and_torn_saves(folder):
    for step in (1, 2, 3):
        save_step(folder, step, 0, 1)
    (folder / "step_00000002.partial").mkdir()
    (folder / "step_00000002.partial" / "rank_00000.pt").write_bytes(b"torn")
    report = save_step(folder, 4, 0, 1, keep_last=2)
    assert [path.name for path in find(folder)] == ["step_00000003", "step_00000004"]
    assert sorted(path.name for path in report.removed) == [
        "step_00000001",
        "step_00000002",
        "step_00000002.partial",
    ]
    assert latest(folder) == report.path
    assert sorted(file.name for file in folder.iterdir()) == [
        "latest",
        "step_00000003",
        "step_00000004",
    ]


def test_keep_last_never_removes_the_one_just_saved(folder):
    """A run that went back behind a damaged checkpoint saves a step that is not the highest."""
    for step in (1, 9):
        save_step(folder, step, 0, 1)
    report = save_step(folder, 5, 0, 1, keep_last=1)
    assert report.path.is_dir()
    assert [path.name for path in find(folder)] == ["step_00000005", "step_00000009"]
    assert (folder / "latest").read_text() == "step_00000005\n"


def test_damaged_checkpoints_are_not_among_the_last_that_are_kept(folder):
    """They were: two damaged ones and keep_last 2 left nothing whole but the newest."""
    for step in (1, 2, 3, 4):
        save_step(folder, step, 0, 1)
    for step in (3, 4):
        (step_path(folder, step) / "rank_00000.bin").unlink()
    save_step(folder, 5, 0, 1, keep_last=2)
    assert [path.name[-1] for path in find(folder)] == ["2", "5"]
    save_step(folder, 6, 0, 1, keep_last=2)
    assert [path.name[-1] for path in list_steps(folder).values()] == ["5", "6"]


def test_later_checkpoints_are_removed_and_latest_names_the_one_before(folder):
    for step in (1, 2, 3, 4):
        save_step(folder, step, 0, 1)
    (step_path(folder, 2) / "rank_00000.bin").unlink()
    removed, warnings = remove_from(folder, 3)
    assert [path.name[-1] for path in removed] == ["4", "3"] and warnings == ()
    assert (folder / "latest").read_text() == "step_00000001\n"
    assert list(list_steps(folder)) == [1, 2]
    remove_from(folder, 1)
    assert list(folder.iterdir()) == []


def test_keep_last_below_one_is_refused(folder):
    with pytest.raises(ValueError, match="keep_last is 0; 1 or more, or None"):
        save_step(folder, 1, 0, 1, keep_last=0)


def test_multiples_and_imported_weights_are_kept(folder):
    save_step(folder, 0, 0, 1)
    for step in range(1, 8):
        save_step(folder, step, 0, 1, keep_last=2, every=3)
    assert [path.name[-1] for path in find(folder)] == ["0", "3", "6", "7"]


def test_what_cannot_be_pruned_is_a_warning(folder, monkeypatch):
    """A file that another program holds on a network disk must not end a training run."""
    save_step(folder, 1, 0, 1)

    def busy(path):
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    report = save_step(folder, 2, 0, 1, keep_last=1)
    assert report.removed == ()
    (warning,) = report.warnings
    assert "step_00000001: could not be removed: " in warning and "busy" in warning
    assert find(folder) == [report.path]
