# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Exports: what lies in the folder, that it comes back the same, and that they go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from k2_megatron.checkpoint.huggingface.config_writing import write_config_json
from k2_megatron.checkpoint.huggingface.exporting import Export, export
from k2_megatron.checkpoint.huggingface.importing import open_import
from k2_megatron.checkpoint.huggingface.names import hf_tensors
from k2_megatron.checkpoint.huggingface.safetensors_file import NewTensor, write_file
from k2_megatron.checkpoint.identity import model_matrices
from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.errors import CheckpointError
from tests.huggingface.releases import CONFIG, ONE_SHARED, OVERRIDES

SHARD_BYTES = 50_000
Matrices = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CONFIG, [*OVERRIDES, ONE_SHARED, "model.mtp_num_layers=1"])


@pytest.fixture(scope="module")
def matrices(config: Config) -> Matrices:
    generator = torch.Generator().manual_seed(4)
    shapes = model_matrices(config.model)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def plan_of(config: Config, folder: Path, dtype: torch.dtype = torch.float32) -> Export:
    return Export(
        folder=folder,
        source="step 7",
        config=write_config_json(config.model, dtype="float32", context=64, like=None),
        tensors=hf_tensors(config.model),
        dtype=dtype,
        shard_bytes=SHARD_BYTES,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_exported_comes_back(
    dtype: torch.dtype, config: Config, matrices: Matrices, tmp_path: Path
) -> None:
    """An MTP layer too, with its copies of embedding and head; the bias in fp32 whatever asked."""
    done = export(plan_of(config, tmp_path, dtype), matrices.__getitem__, workers=3)
    source = open_import(tmp_path, config)
    source.check_copies()
    found = dict(source.matrices(source.originals))
    assert found.keys() == matrices.keys()
    for key, value in matrices.items():
        expected = value if key.endswith("router_bias") else value.to(dtype).float()
        assert torch.equal(found[key], expected), key
    files = sorted(tmp_path.glob("*.safetensors"))
    assert done.num_shards == len(files) > 5
    assert done.size_bytes == sum(file.stat().st_size for file in files)
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*progress*"))


def test_files_are_safetensors_of_the_size_asked_for(
    config: Config, matrices: Matrices, tmp_path: Path
) -> None:
    """Read by the package of that name."""
    export(plan_of(config, tmp_path), matrices.__getitem__, workers=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    total = 0
    for file in sorted(set(index["weight_map"].values())):
        # The package aligns the tensors, and readers that map a file count on it.
        assert int.from_bytes((tmp_path / file).read_bytes()[:8], "little") % 8 == 0
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            names = opened.keys()
            sizes = [opened.get_tensor(name).nbytes for name in names]
            assert {index["weight_map"][name] for name in names} == {file}
            assert sum(sizes) <= SHARD_BYTES or len(sizes) == 1
            total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    with safe_open(tmp_path / index["weight_map"]["lm_head.weight"], framework="pt") as opened:
        assert torch.equal(opened.get_tensor("lm_head.weight"), matrices["output"])


def test_copies_that_differ_are_refused(config: Config, matrices: Matrices, tmp_path: Path) -> None:
    export(plan_of(config, tmp_path), matrices.__getitem__, workers=2)
    name = "model.layers.3.shared_head.head.weight"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    path = tmp_path / index["weight_map"][name]
    with safe_open(path, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    tensors[name][-1, -1] += 1
    new = [NewTensor(name=k, dtype=v.dtype, shape=tuple(v.shape)) for k, v in tensors.items()]
    write_file(path, new, tensors.__getitem__)
    with pytest.raises(CheckpointError, match=f"{name} differs from lm_head.weight, which our MTP"):
        open_import(tmp_path, config).check_copies()


class Interrupted(Exception):
    """What stops the exports of these tests."""


def interrupt(plan: Export, matrices: Matrices) -> int:
    """Export until a matrix of the second layer is wanted; returns how many shards are finished."""

    def read(key: str) -> torch.Tensor:
        if key == "layers.1.router":
            raise Interrupted
        return matrices[key]

    with pytest.raises(Interrupted):
        export(plan, read, workers=1)
    assert not (plan.folder / "model.safetensors.index.json").exists()
    return len(list(plan.folder.glob("*.safetensors")))


def flip_a_bit(folder: Path) -> None:
    path = min(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "lost"),
    [
        (lambda folder: None, 0),
        (flip_a_bit, 1),
        (lambda folder: min(folder.glob("*.safetensors")).unlink(), 1),
    ],
    ids=["whole", "flipped bit", "removed"],
)
def test_interrupted_export_goes_on(
    spoil: Callable[[Path], None],
    lost: int,
    config: Config,
    matrices: Matrices,
    tmp_path: Path,
) -> None:
    whole, plan = plan_of(config, tmp_path / "whole"), plan_of(config, tmp_path / "resumed")
    export(whole, matrices.__getitem__, workers=1)
    finished = interrupt(plan, matrices)
    assert finished >= 2
    spoil(plan.folder)
    done = export(plan, matrices.__getitem__, workers=2)
    assert done.kept == finished - lost
    expected = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    assert {path.name: path.read_bytes() for path in plan.folder.iterdir()} == expected


@pytest.mark.parametrize("change", ["source", "dtype"])
def test_unfinished_export_of_something_else_is_refused(
    change: str, config: Config, matrices: Matrices, tmp_path: Path
) -> None:
    plan = plan_of(config, tmp_path / "out")
    interrupt(plan, matrices)
    other = (
        replace(plan, source="step 8")
        if change == "source"
        else replace(plan, dtype=torch.bfloat16)
    )
    with pytest.raises(CheckpointError) as caught:
        export(other, matrices.__getitem__, workers=1)
    assert str(caught.value) == (
        f"{plan.folder}: holds an unfinished export of other weights or with other options; "
        "remove it, or give a new folder"
    )


def test_folder_with_other_files_is_refused(
    config: Config, matrices: Matrices, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty, and no export that was interrupted"):
        export(plan_of(config, tmp_path), matrices.__getitem__, workers=1)


def test_tokenizer_goes_along(config: Config, matrices: Matrices, tmp_path: Path) -> None:
    like = tmp_path / "like"
    like.mkdir()
    passed = ["tokenizer_config.json", "tiktoken.model", "tokenization_kimi.py", "merges.txt"]
    for name in [*passed, "README.md", "config.json", "old.safetensors"]:
        (like / name).write_text(name)
    plan = replace(plan_of(config, tmp_path / "out"), like=like)
    export(plan, matrices.__getitem__, workers=1)
    beside = {p.name for p in plan.folder.iterdir() if not p.name.endswith("safetensors")}
    assert beside == {*passed, "config.json", "model.safetensors.index.json"}
    assert all((plan.folder / name).read_text() == name for name in passed)
