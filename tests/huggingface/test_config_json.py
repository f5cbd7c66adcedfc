# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""config.json in both directions: the published ones, every refusal, what an export takes over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from k2_megatron.checkpoint.huggingface.config_json import HfConfig, read_config_json
from k2_megatron.checkpoint.huggingface.config_writing import write_config_json
from k2_megatron.config.presets import model_from_preset
from k2_megatron.errors import CheckpointError, ConfigError
from tests.huggingface.published import KIMI_K2, MOONLIGHT

K2_YARN = {"rope_type": "yarn"}
YARN = KIMI_K2["rope_scaling"]
FP8 = KIMI_K2["quantization_config"]


def read(folder: Path, fields: object) -> HfConfig:
    (folder / "config.json").write_text(json.dumps(fields))
    return read_config_json(folder)[0]


@pytest.mark.parametrize(
    ("fields", "preset", "overrides", "block"),
    [(KIMI_K2, "kimi-k2", K2_YARN, (128, 128)), (MOONLIGHT, "moonlight-16b-a3b", {}, None)],
    ids=["kimi-k2", "moonlight"],
)
def test_published_models_are_the_presets(
    fields: dict[str, Any],
    preset: str,
    overrides: dict[str, Any],
    block: tuple[int, int] | None,
    tmp_path: Path,
) -> None:
    found = read(tmp_path, fields)
    expected = model_from_preset(preset, **overrides)
    assert dict(found.model) == {key: getattr(expected, key) for key in found.model}
    assert len(found.model) == (28 if overrides else 22)
    assert found.fp8_block == block


@pytest.mark.parametrize(
    ("fields", "preset", "overrides"),
    [(KIMI_K2, "kimi-k2", K2_YARN), (MOONLIGHT, "moonlight-16b-a3b", {})],
    ids=["kimi-k2", "moonlight"],
)
def test_export_like_a_published_model_writes_its_config(
    fields: dict[str, Any], preset: str, overrides: dict[str, Any]
) -> None:
    model = model_from_preset(preset, **overrides)
    written = write_config_json(model, dtype="bfloat16", context=8192, like=fields)
    expected = {key: value for key, value in fields.items() if key != "quantization_config"}
    # Where the published file is silent, its readers take these.
    assert written == {"rope_interleave": True, "rope_scaling": None, **expected}


@pytest.mark.parametrize("overrides", [{}, K2_YARN, {"mtp_num_layers": 1, "moe_router_topk": 1}])
def test_what_is_written_is_read_again(overrides: dict[str, Any], tmp_path: Path) -> None:
    model = model_from_preset("k2-tiny", **overrides)
    found = read(tmp_path, write_config_json(model, dtype="float32", context=64, like=None))
    assert dict(found.model) == {key: getattr(model, key) for key in found.model}


def test_newer_spelling_of_transformers_is_read(tmp_path: Path) -> None:
    """Version 5 puts theta and YaRN into rope_parameters and names sizes of its own."""
    fields = {key: value for key, value in KIMI_K2.items() if not key.startswith("rope_")}
    fields |= {
        "rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 50000.0},
        "head_dim": 64,
        "qk_head_dim": 192,
        "dtype": "bfloat16",
    }
    assert read(tmp_path, fields) == read(tmp_path, KIMI_K2)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"attn_gate": 1}, "attn_gate: unknown field, 1 given"),
    "misspelt": ({"n_grup": 1}, "n_grup: unknown field, 1 given; did you mean n_group?"),
    "architecture": (
        {"architectures": ["KimiK25ForConditionalGeneration"]},
        'architectures: ["KimiK25ForConditionalGeneration"] given, our model has '
        '["DeepseekV3ForCausalLM"]',
    ),
    "type": (
        {"model_type": "kimi_linear"},
        'model_type: "kimi_linear" given, our model has "deepseek_v3" or "kimi_k2"',
    ),
    "activation": ({"hidden_act": "gelu"}, 'hidden_act: "gelu" given, our model has "silu"'),
    "bias": ({"attention_bias": True}, "attention_bias: true given, our model has false"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout: 0.1 given, our model has 0.0"),
    "frequency": ({"moe_layer_freq": 2}, "moe_layer_freq: 2 given, our model has 1"),
    "score": (
        {"scoring_func": "softmax"},
        'scoring_func: "softmax" given, our model has "sigmoid"',
    ),
    "method": ({"topk_method": "greedy"}, 'topk_method: "greedy" given, our model has "noaux_tc"'),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings: true given, our model has false"),
    "halves": ({"rope_interleave": False}, "rope_interleave: false given, our model has true"),
    "not normed": ({"norm_topk_prob": False}, "norm_topk_prob: false given, our model has true"),
    "one expert": ({"num_experts_per_tok": 1}, "norm_topk_prob: true given, our model has false"),
    "grouped heads": (
        {"num_key_value_heads": 8},
        "num_key_value_heads: 8 given, our model has 64",
    ),
    "head size": ({"head_dim": 192}, "head_dim: 192 given, our model has 64"),
    "groups": (
        {"n_group": 8, "topk_group": 8},
        "topk_group: 8 of 8 groups for 8 experts; with groups, two experts must be chosen for each "
        "chosen group: DeepSeek-V3 ranks groups by their best two, megatron-core by their best 1",
    ),
    "missing": ({"kv_lora_rank": ...}, "kv_lora_rank: missing"),
    "null": ({"hidden_size": None}, "hidden_size: missing"),
    "text": ({"hidden_size": "7168"}, "hidden_size: '7168' given, a whole number is allowed"),
    "fraction": ({"vocab_size": 1.5}, "vocab_size: 1.5 given, a whole number is allowed"),
    "truth": ({"rms_norm_eps": True}, "rms_norm_eps: True given, a number is allowed"),
    "no theta": ({"rope_theta": ...}, "rope_theta: missing"),
    "rope type": (
        {"rope_scaling": {**YARN, "type": "linear"}},
        'rope_scaling.rope_type: "linear" given, our model has "default" or "yarn"',
    ),
    "rope list": ({"rope_scaling": [1]}, "rope_scaling: [1] given, an object or null is allowed"),
    "rope field": (
        {"rope_scaling": {**YARN, "short_factor": [1]}},
        "rope_scaling.short_factor: unknown field, [1] given",
    ),
    "rope factor": (
        {"rope_scaling": {**YARN, "attention_factor": 2.0}},
        "rope_scaling.attention_factor: 2.0 given, our model has null",
    ),
    "rope context": (
        {
            "rope_scaling": {
                k: v for k, v in YARN.items() if k != "original_max_position_embeddings"
            }
        },
        "rope_scaling.original_max_position_embeddings: missing",
    ),
    "mscale": (
        {"rope_scaling": {**YARN, "mscale_all_dim": 0.0, "mscale": 0.7}},
        "rope_scaling.mscale: 0.7 beside mscale_all_dim 0, which readers of config.json take "
        "differently; allowed: both above 0, or 1 beside 0",
    ),
    "quantisation": (
        {"quantization_config": {**FP8, "quant_method": "compressed-tensors"}},
        'quantization_config.quant_method: "compressed-tensors" given, our model has "fp8"',
    ),
    "quantisation field": (
        {"quantization_config": {**FP8, "scale_fmt": "ue8m0"}},
        "quantization_config.scale_fmt: unknown field, 'ue8m0' given",
    ),
    "blocks": (
        {"quantization_config": {**FP8, "weight_block_size": [1, 128]}},
        "quantization_config.weight_block_size: [1, 128] given, our model has [128, 128]",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_the_field(case: str, tmp_path: Path) -> None:
    changes, text = REFUSALS[case]
    fields = {key: value for key, value in {**KIMI_K2, **changes}.items() if value is not ...}
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, fields)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: 1 problem(s):\n  {text}"


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"2 problem\(s\):\n  hidden_act.*\n  vocab_size"):
        read(tmp_path, {**KIMI_K2, "hidden_act": "gelu", "vocab_size": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable as JSON"), ("[1]", "holds list, an object is needed"), (None, "No such")],
)
def test_unreadable_file(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_config_json(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            {"moe_shared_expert_intermediate_size": 100},
            "model.moe_shared_expert_intermediate_size: 100 is no multiple of "
            "moe_ffn_hidden_size 96; config.json gives the number of shared experts",
        ),
        (
            {"moe_router_num_groups": 4, "moe_router_group_topk": 2},
            "model.moe_router_group_topk: 2 of 4 groups for 2 experts; with groups, two experts "
            "must be chosen for each chosen group: DeepSeek-V3 ranks groups by their best two, "
            "megatron-core by their best 1",
        ),
        (
            {"rope_type": "yarn", "mscale": 0.0},
            "model.mscale: 0 beside mscale_all_dim 1, which readers of config.json take "
            "differently; allowed: both above 0, or 1 beside 0",
        ),
    ],
)
def test_export_refuses_what_a_release_cannot_say(overrides: dict[str, Any], text: str) -> None:
    model = model_from_preset("k2-tiny", **overrides)
    with pytest.raises(ConfigError) as caught:
        write_config_json(model, dtype="float32", context=64, like=None)
    assert str(caught.value) == f"this model has no Hugging Face counterpart:\n  {text}"
