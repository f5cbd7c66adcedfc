# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Releases that are damaged or another model's are refused; block FP8 comes in as it was made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from k2_megatron.checkpoint.huggingface.block_fp8 import dequantise
from k2_megatron.checkpoint.huggingface.importing import Import, open_import
from k2_megatron.checkpoint.huggingface.safetensors_file import read_header
from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.errors import CheckpointError, ConfigError
from tests.huggingface.releases import CONFIG, ONE_SHARED, OVERRIDES, SHAPES, random_model

INDEX = "model.safetensors.index.json"
Q_B = "model.layers.0.self_attn.q_b_proj.weight"
DOWN = "model.layers.2.mlp.experts.5.down_proj.weight"
FP8_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CONFIG, [*OVERRIDES, ONE_SHARED])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    random_model(SHAPES["k2"]).save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture
def release(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "release"))


def file_of(release: Path, name: str) -> Path:
    return release / str(json.loads((release / INDEX).read_text())["weight_map"][name])


def change(release: Path, name: str, value: torch.Tensor | None, **others: torch.Tensor) -> None:
    """Replace or remove a tensor, or add some, in file and index."""
    file = file_of(release, name)
    tensors = load_file(file)
    tensors.pop(name)
    tensors |= others
    if value is not None:
        tensors[name] = value
    save_file(tensors, file, metadata={"format": "pt"})
    index = json.loads((release / INDEX).read_text())
    index["weight_map"].pop(name)
    index["weight_map"] |= {key: file.name for key in tensors}
    (release / INDEX).write_text(json.dumps(index))


def change_config(release: Path, **fields: Any) -> None:
    path = release / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def matrices(source: Import) -> dict[str, torch.Tensor]:
    return dict(source.matrices(source.originals))


def rename(release: Path) -> None:
    value = load_file(file_of(release, Q_B))[Q_B]
    change(release, Q_B, None, **{Q_B.replace("q_b", "q_c"): value})


TENSOR_PROBLEMS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "missing": (lambda r: change(r, DOWN, None), [f"missing: {DOWN} [64, 32]"]),
    "misshapen": (
        lambda r: change(r, DOWN, torch.zeros(32, 64)),
        [f"misshapen: {DOWN}: [32, 64] found, [64, 32] expected"],
    ),
    "renamed": (
        rename,
        [f"missing: {Q_B} [96, 32]", f"unknown: {Q_B.replace('q_b', 'q_c')} [96, 32]"],
    ),
    "another dtype": (
        lambda r: change(r, DOWN, torch.zeros(64, 32, dtype=torch.float16)),
        [f"dtype: {DOWN}: F16; allowed: F32, BF16, F8_E4M3"],
    ),
    "fp8 without blocks": (
        lambda r: change(r, DOWN, torch.zeros(64, 32).to(torch.float8_e4m3fn)),
        [
            f"missing: {DOWN}_scale_inv",
            f"dtype: {DOWN}: F8_E4M3, and config.json has no quantization_config",
        ],
    ),
    "scale of nothing": (
        lambda r: change(r, DOWN, torch.zeros(64, 32), **{f"{DOWN}_scale_inv": torch.ones(1, 1)}),
        [f"unknown: {DOWN}_scale_inv [1, 1]"],
    ),
}


@pytest.mark.parametrize("case", TENSOR_PROBLEMS)
def test_wrong_tensors_are_listed(case: str, release: Path, config: Config) -> None:
    spoil, lines = TENSOR_PROBLEMS[case]
    spoil(release)
    with pytest.raises(CheckpointError) as caught:
        open_import(release, config)
    text = "\n  ".join([f"{release}: its tensors are not those of its config.json:", *lines])
    assert str(caught.value) == text


def test_long_lists_are_cut(release: Path, config: Config) -> None:
    change_config(release, num_hidden_layers=4)
    deeper = load_config(CONFIG, ["model.num_layers=4", ONE_SHARED])
    with pytest.raises(CheckpointError, match=r"missing: and 18 more$"):
        open_import(release, deeper)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), r"files that .* names are missing: \['model-"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:-1]),
            r"safetensors: \d+ bytes, its header says \d+; truncated or damaged",
        ),
        (lambda file: file.write_bytes(b"12345"), r"5 bytes; truncated, or not a safetensors file"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:8] + b"x" + file.read_bytes()[9:]),
            r"its safetensors header is damaged",
        ),
    ],
    ids=["missing", "truncated", "short", "header"],
)
def test_damaged_file_is_named(
    spoil: Callable[[Path], object], message: str, release: Path, config: Config
) -> None:
    file = file_of(release, DOWN)
    spoil(file)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_import(release, config)
    assert file.name in str(caught.value)


def test_index_and_files_must_agree(release: Path, config: Config) -> None:
    index = json.loads((release / INDEX).read_text())
    other = next(
        name for name in index["weight_map"].values() if name != file_of(release, DOWN).name
    )
    index["weight_map"] |= {DOWN: other, "ghost": other}
    (release / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        open_import(release, config)
    assert f"{DOWN}: in model-" in str(caught.value)
    assert f"ghost: the index says {other}, which lacks it" in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / INDEX).write_text("{}"), r"index.json: not an index of safetensors files"),
        (lambda r: (r / INDEX).unlink(), r"holds neither model.safetensors.index.json nor model"),
    ],
)
def test_no_index(
    spoil: Callable[[Path], object], message: str, release: Path, config: Config
) -> None:
    spoil(release)
    with pytest.raises(CheckpointError, match=message):
        open_import(release, config)


def test_another_model_is_refused_by_every_key(release: Path) -> None:
    other = load_config(CONFIG, ["model.num_layers=3", "model.q_lora_rank=null"])
    with pytest.raises(ConfigError) as caught:
        open_import(release, other)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        "  model.q_lora_rank: 32 in config.json, null here",
        "  model.moe_shared_expert_intermediate_size: 32 in config.json, 48 here",
    ]


def test_keys_without_effect_are_not_compared(release: Path) -> None:
    """Without a dense layer its width is no part of the model; the tensors are looked at next."""
    change_config(release, first_k_dense_replace=0, intermediate_size=999)
    no_dense = load_config(CONFIG, [*OVERRIDES, ONE_SHARED, "model.first_k_dense_replace=0"])
    with pytest.raises(CheckpointError, match=r"missing: model.layers.0.mlp.gate.weight \[8, 64\]"):
        open_import(release, no_dense)


def test_not_a_number_is_refused(release: Path, config: Config) -> None:
    change(release, DOWN, torch.full((64, 32), torch.nan))
    with pytest.raises(CheckpointError, match=f"{DOWN} holds infinities or NaN"):
        matrices(open_import(release, config))


def test_one_file_without_an_index(release: Path, saved: Path, config: Config) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for file in release.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (release / INDEX).unlink()
    save_file(tensors, release / "model.safetensors")
    found, expected = matrices(open_import(release, config)), matrices(open_import(saved, config))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_frequencies_are_passed_over_and_told(release: Path, config: Config) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(release, DOWN, torch.zeros(64, 32), **{name: torch.ones(4)})
    change_config(release, num_nextn_predict_layers=1)
    assert open_import(release, config).notes == (
        "config.json names 1 multi-token-prediction layer(s), the files hold none",
        "1 inv_freq tensors not read: config.json decides the rotation",
    )


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks of 128 x 128 in E4M3, their scales, and what the two stand for."""
    rows, cols = (-(-size // 128) for size in weight.shape)
    padded = torch.zeros(rows * 128, cols * 128)
    padded[: weight.shape[0], : weight.shape[1]] = weight.float()
    blocks = padded.reshape(rows, 128, cols, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    quantised = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = (quantised.float() * scale[:, None, :, None]).reshape(padded.shape)
    corner = (slice(weight.shape[0]), slice(weight.shape[1]))
    return quantised.reshape(padded.shape)[corner].contiguous(), scale, meant[corner].contiguous()


def test_block_fp8_of_other_code_imports_bit_for_bit(
    release: Path, tmp_path: Path, config: Config
) -> None:
    """Projections in FP8, the rest in bf16 and the bias in fp32, as Kimi K2 was released."""
    meant = Path(shutil.copytree(release, tmp_path / "meant"))
    weight_map = {}
    for file in sorted(release.glob("*.safetensors")):
        tensors, values = {}, {}
        for name, value in load_file(file).items():
            if name.endswith("_proj.weight") or "kv_a_proj" in name:
                tensors[name], tensors[f"{name}_scale_inv"], values[name] = quantise(value)
            elif name.endswith("e_score_correction_bias"):
                tensors[name] = values[name] = value
            else:
                tensors[name] = value.bfloat16()
                values[name] = tensors[name].float()
        save_file(tensors, file)
        save_file(values, meant / file.name)
        weight_map |= {name: file.name for name in tensors}
    (release / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    change_config(release, quantization_config=FP8_CONFIG, dtype="bfloat16")
    dtypes = [t.dtype for file in release.glob("*.safetensors") for t in read_header(file).values()]
    assert {name: dtypes.count(name) for name in ("F8_E4M3", "BF16")} == {"F8_E4M3": 72, "BF16": 17}
    found, expected = matrices(open_import(release, config)), matrices(open_import(meant, config))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_fp8_scales_must_fit(release: Path, config: Config) -> None:
    weight = torch.zeros(64, 32).to(torch.float8_e4m3fn)
    scale = torch.ones(2, 1, dtype=torch.float16)
    change(release, DOWN, weight, **{f"{DOWN}_scale_inv": scale})
    change_config(release, quantization_config=FP8_CONFIG)
    with pytest.raises(CheckpointError) as caught:
        open_import(release, config)
    assert str(caught.value).splitlines()[1:] == [
        f"  misshapen: {DOWN}_scale_inv: [2, 1] found, [1, 1] expected",
        f"  dtype: {DOWN}_scale_inv: F16; allowed: F32, BF16",
    ]


@pytest.mark.parametrize("shape", [(300, 200), (128, 256), (1, 129)])
def test_blocks_cut_at_the_edges(shape: tuple[int, int]) -> None:
    weight, scale, meant = quantise(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(dequantise(weight, scale, (128, 128)), meant)
