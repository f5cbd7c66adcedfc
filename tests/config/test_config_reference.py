# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The reference page is current, and the list of keys does not change unnoticed."""

import subprocess
import sys
from pathlib import Path

from k2_megatron.config.config import sections
from k2_megatron.config.option import keys_of
from k2_megatron.config.presets import MODEL_PRESETS
from k2_megatron.config.reference import reference_page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

KEYS = {
    "run": (
        "name folder seed stop_after_step distributed_timeout_seconds hang_timeout_seconds "
        "max_consecutive_skipped_steps loss_spike_factor loss_spike_steps loss_spike_window "
        "max_rollbacks"
    ),
    "model": (
        "preset num_layers hidden_size num_attention_heads q_lora_rank kv_lora_rank "
        "qk_head_dim qk_pos_emb_head_dim v_head_dim ffn_hidden_size first_k_dense_replace "
        "num_experts moe_ffn_hidden_size moe_shared_expert_intermediate_size "
        "moe_router_topk moe_router_num_groups moe_router_group_topk "
        "moe_router_topk_scaling_factor moe_router_bias_update_rate moe_aux_loss_coeff "
        "vocab_size layernorm_epsilon init_method_std rope_type rotary_base "
        "rotary_scaling_factor original_max_position_embeddings beta_fast beta_slow "
        "mscale mscale_all_dim mtp_num_layers mtp_loss_scaling_factor"
    ),
    "parallel": (
        "tensor_model_parallel_size sequence_parallel pipeline_model_parallel_size "
        "virtual_pipeline_model_parallel_size pipeline_model_parallel_layout "
        "context_parallel_size expert_model_parallel_size expert_tensor_parallel_size "
        "overlap_grad_reduce overlap_param_gather moe_token_dispatcher_type "
        "overlap_moe_expert_parallel_comm delay_wgrad_compute"
    ),
    "precision": "dtype",
    "optimizer": (
        "type weight_decay clip_grad adam_beta1 adam_beta2 adam_eps "
        "optimizer_offload_fraction "
        "muon_momentum muon_nesterov muon_ns_steps muon_ns_coefficients muon_update_rms "
        "muon_momentum_dtype muon_ns_dtype muon_wire_dtype "
        "muon_split_gate_up muon_split_q_up muon_split_kv_up muon_split_kv_down muon_per_head "
        "muon_router qk_clip qk_clip_threshold"
    ),
    "schedule": (
        "train_steps seq_length micro_batch_size global_batch_size lr min_lr "
        "lr_warmup_steps lr_decay_style lr_wsd_decay_steps phases"
    ),
    "data": "corpora valid_fraction cache_folder num_workers",
    "memory": "preset host_budget host_headroom tensors",
    "checkpoint": (
        "save_every_steps save_at_end keep_last keep_every_steps async_save resume max_failed_saves"
    ),
    "logging": (
        "log_every_steps valid_every_steps valid_steps tensorboard trace_steps trace_ranks "
        "straggler_factor straggler_reports"
    ),
    "cluster": (
        "nodes gpus_per_node gpu_type tasks_per_node cpus_per_task exclusive partition account qos "
        "constraint time_limit save_before_limit_seconds requeue venv container container_runtime "
        "container_mounts environment"
    ),
}


def test_keys_are_those_that_users_rely_on():
    """A key that is renamed or removed breaks configurations: change this list on purpose only."""
    found = {section: " ".join(keys_of(kind)) for section, kind in sections().items()}
    assert found == KEYS
    item = keys_of(sections()["data"])["corpora"].item
    assert item is not None and list(keys_of(item)) == ["path", "weight"]
    item = keys_of(sections()["memory"])["tensors"].item
    assert item is not None and list(keys_of(item)) == ["tensors", "policy", "layers", "stages"]
    item = keys_of(sections()["cluster"])["environment"].item
    assert item is not None and list(keys_of(item)) == ["name", "value"]


def test_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == reference_page(), (
        "run: python -m k2_megatron.config.reference docs/configuration.md"
    )


def test_page_is_printed_or_written(tmp_path):
    command = [sys.executable, "-m", "k2_megatron.config.reference"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    assert printed.stdout == reference_page()
    subprocess.run([*command, str(tmp_path / "page.md")], check=True)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == reference_page()


def test_defaults_and_presets_are_values_that_the_keys_allow():
    for section, kind in sections().items():
        for name, key in keys_of(kind).items():
            values = [] if key.required else [key.default]
            if section == "model":
                values += [preset[name] for preset in MODEL_PRESETS.values() if name in preset]
            for value in values:
                if value is None:
                    assert key.optional, name
                else:
                    assert type(value) is key.kind, name
                    assert key.option.accepts(value), name
                    assert not key.choices or value in key.choices, name


def test_presets_name_the_keys_they_change_and_the_choices():
    keys = keys_of(sections()["model"])
    assert keys["preset"].choices == tuple(MODEL_PRESETS)
    for preset in MODEL_PRESETS.values():
        assert set(preset) <= set(keys)
        assert all(value != keys[name].default for name, value in preset.items())
