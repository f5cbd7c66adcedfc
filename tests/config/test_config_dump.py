# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What is dumped loads to an equal configuration."""

import pytest
from config_helpers import load

from k2_megatron.config.dump import dump_config
from k2_megatron.config.loader import load_config
from k2_megatron.config.presets import MODEL_PRESETS, model_from_preset

VARIANTS = [
    *[[f"model.preset={preset}"] for preset in MODEL_PRESETS],
    ["model.first_k_dense_replace=4"],
    ["model.first_k_dense_replace=0", "model.q_lora_rank=null", "model.mtp_num_layers=1"],
    ["model.rope_type=yarn", "model.beta_fast=32", "model.layernorm_epsilon=1.0e-07"],
    ["schedule.lr_decay_style=constant", "schedule.lr_wsd_decay_steps=null"],
    ["schedule.lr_decay_style=cosine", "schedule.lr_wsd_decay_steps=null", "schedule.min_lr=0"],
    ["parallel.tensor_model_parallel_size=2", "parallel.expert_model_parallel_size=2"],
    ["parallel.pipeline_model_parallel_size=2", "parallel.pipeline_model_parallel_layout=Et|tttL"],
    ["run.name='1e5'", "run.folder='on'", "data.cache_folder=é", "checkpoint.keep_last=null"],
    ["optimizer.type=muonclip", "optimizer.muon_ns_coefficients=[2, -1.5, 1.0e-07]"],
    ["optimizer.type=muonclip", "optimizer.qk_clip=none", "optimizer.muon_ns_dtype=fp16"],
    ["data.corpora=[{path: '12', weight: 0.25}, {path: 'null'}]"],
    ["cluster.nodes=1", "cluster.time_limit='24:00:00'", "cluster.container=a.sif"],
    ["cluster.nodes=1", "cluster.environment=[{name: A, value: '1'}, {name: B, value: ''}]"],
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_round_trip(tmp_path, overrides):
    config = load(tmp_path, *overrides)
    path = tmp_path / "resolved_config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == path.read_text(encoding="utf-8")


def test_dump_states_automatic_values_and_defaults(tmp_path):
    text = dump_config(load(tmp_path, "parallel.tensor_model_parallel_size=2"))
    assert "  sequence_parallel: true\n" in text
    assert "  expert_tensor_parallel_size: 2\n" in text
    assert "  layernorm_epsilon: 1.0e-06\n" in text
    assert "beta_fast" not in text
    assert text.startswith("run:\n  name: tiny\n") and text.index("model:") < text.index("data:")


def test_model_built_in_python_is_the_loaded_one(tmp_path):
    for preset in MODEL_PRESETS:
        assert load(tmp_path, f"model.preset={preset}").model == model_from_preset(preset)
    assert model_from_preset("k2-tiny", num_layers=7).num_layers == 7
    assert model_from_preset("k2-tiny", num_layers=7).hidden_size == 128
