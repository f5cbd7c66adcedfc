# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which keys change nothing in a given configuration: refused when given, left out when dumped."""

from __future__ import annotations

from k2_megatron.config.config import Config, sections
from k2_megatron.config.memory import names_host
from k2_megatron.config.model import YARN_KEYS
from k2_megatron.config.option import keys_of

_MOE_KEYS = (
    "num_experts",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_router_topk",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_topk_scaling_factor",
    "moe_router_bias_update_rate",
    "moe_aux_loss_coeff",
)
REPLACED_BY_PHASES = (
    "train_steps",
    "lr",
    "min_lr",
    "lr_warmup_steps",
    "lr_decay_style",
    "lr_wsd_decay_steps",
)

_MUONCLIP_PREFIXES = ("muon_", "qk_clip")


def has_experts(config: Config) -> bool:
    """Whether any layer has routed experts."""
    return config.model.first_k_dense_replace < config.model.num_layers


def keys_without_effect(config: Config) -> dict[str, tuple[str, str]]:
    """The keys that change nothing, each with the key that makes it so and the reason."""
    model, schedule = config.model, config.schedule
    found = {
        **_optimizer_keys_without_effect(config),
        **_cluster_keys_without_effect(config),
        **_fault_keys_without_effect(config),
        **_memory_keys_without_effect(config),
    }
    if model.rope_type == "rope":
        for name in YARN_KEYS:
            found[f"model.{name}"] = ("model.rope_type", "only rope_type yarn uses it")
    if not has_experts(config):
        moe_keys = [f"model.{name}" for name in _MOE_KEYS]
        others = ["parallel.moe_token_dispatcher_type"]
        if config.optimizer.type == "muonclip":
            others.append("optimizer.muon_router")
        for key in [*moe_keys, *others]:
            found[key] = ("model.first_k_dense_replace", "every layer is dense")
    if model.first_k_dense_replace == 0:
        found["model.ffn_hidden_size"] = ("model.first_k_dense_replace", "no layer is dense")
    if model.mtp_num_layers == 0:
        found["model.mtp_loss_scaling_factor"] = ("model.mtp_num_layers", "there is no MTP layer")
    if config.logging.trace_steps is None:
        found["logging.trace_ranks"] = ("logging.trace_steps", "no step is traced")
    if schedule.lr_decay_style == "constant":
        found["schedule.min_lr"] = ("schedule.lr_decay_style", "the rate never decays")
    if schedule.lr_decay_style != "wsd":
        reason = "only lr_decay_style wsd uses it"
        found["schedule.lr_wsd_decay_steps"] = ("schedule.lr_decay_style", reason)
    if schedule.phases:
        for name in REPLACED_BY_PHASES:
            found[f"schedule.{name}"] = ("schedule.phases", "the phases say it")
    return found


def _optimizer_keys_without_effect(config: Config) -> dict[str, tuple[str, str]]:
    """MuonClip's own keys beside another update rule, and a threshold that nothing is held to."""
    if config.optimizer.type != "muonclip":
        cause = ("optimizer.type", "only type muonclip uses it")
        names = keys_of(sections()["optimizer"])
        return {f"optimizer.{name}": cause for name in names if name.startswith(_MUONCLIP_PREFIXES)}
    if config.optimizer.qk_clip == "none":
        return {"optimizer.qk_clip_threshold": ("optimizer.qk_clip", "no logit is measured")}
    return {}


def _fault_keys_without_effect(config: Config) -> dict[str, tuple[str, str]]:
    """Keys of guards that are off."""
    found = {}
    if config.run.loss_spike_factor is None:
        cause = ("run.loss_spike_factor", "without it no spike is looked for")
        for name in ("loss_spike_steps", "loss_spike_window", "max_rollbacks"):
            found[f"run.{name}"] = cause
    if config.logging.straggler_factor is None:
        cause = ("logging.straggler_factor", "without it ranks are not compared")
        found["logging.straggler_reports"] = cause
    return found


def _memory_keys_without_effect(config: Config) -> dict[str, tuple[str, str]]:
    """Room in host memory that nothing is sent to, or that nothing can exceed."""
    if not names_host(config.memory):
        cause = ("memory.preset", "no activation is in host memory")
        return {"memory.host_budget": cause, "memory.host_headroom": cause}
    if config.parallel.expert_model_parallel_size == 1:
        cause = ("parallel.expert_model_parallel_size", "every rank has all tokens of its experts")
        return {"memory.host_headroom": cause}
    return {}


def _cluster_keys_without_effect(config: Config) -> dict[str, tuple[str, str]]:
    """Keys of a job that is never launched, of GPUs or ranks it has not, of no container."""
    cluster = config.cluster
    if cluster.nodes is None:
        cause = ("cluster.nodes", "without it there is no job")
        return {
            f"cluster.{name}": cause for name in keys_of(sections()["cluster"]) if name != "nodes"
        }
    found = {}
    if cluster.gpus_per_node:
        found["cluster.tasks_per_node"] = ("cluster.gpus_per_node", "each GPU gets one rank")
    else:
        found["cluster.gpu_type"] = ("cluster.gpus_per_node", "the job has no GPU")
    if cluster.container is None:
        for name in ("container_runtime", "container_mounts"):
            found[f"cluster.{name}"] = ("cluster.container", "there is no container")
    return found
