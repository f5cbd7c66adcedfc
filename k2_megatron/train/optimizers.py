# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer that the configuration names, built over this rank's model."""

from __future__ import annotations

import torch

from k2_megatron.config.config import Config
from k2_megatron.config.optimizer import OptimizerConfig
from k2_megatron.kernels.newton_schulz.dispatch import fast_dtype
from k2_megatron.model.attention_layers import record_max_logits
from k2_megatron.model.build import Model
from k2_megatron.model.transformer import parameter_dtype, records_max_logits
from k2_megatron.parallel.muonclip.optimizer import MuonClip, MuonClipOptions
from k2_megatron.parallel.optimizer import AdamW, Optimizer
from k2_megatron.parallel.topology import Topology
from k2_megatron.planner.update_rules import assignment_of

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_optimizer(
    config: Config, model: Model, topology: Topology, device: torch.device
) -> Optimizer:
    """The optimizer of `optimizer.type`. Collective."""
    if config.optimizer.type == "muonclip":
        return _muonclip(config, model, topology, device)
    options = config.optimizer
    return AdamW(
        model.chunks,
        lr=config.schedule.lr,
        weight_decay=options.weight_decay,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
        clip_grad=options.clip_grad,
        dtype=parameter_dtype(config),
        host_fraction=options.optimizer_offload_fraction,
    )


def muonclip_options(
    options: OptimizerConfig, dtype: torch.dtype, device: torch.device
) -> MuonClipOptions:
    """The constants of MuonClip, with those filled in that follow from the run's precision."""
    by_precision = torch.float32 if dtype == torch.float32 else fast_dtype(device)
    return MuonClipOptions(
        momentum=options.muon_momentum,
        nesterov=options.muon_nesterov,
        ns_steps=options.muon_ns_steps,
        ns_coefficients=options.muon_ns_coefficients,
        ns_dtype=_DTYPES[options.muon_ns_dtype] if options.muon_ns_dtype else by_precision,
        momentum_dtype=_DTYPES[options.muon_momentum_dtype],
        wire_dtype=_DTYPES[options.muon_wire_dtype] if options.muon_wire_dtype else dtype,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
        clip_grad=options.clip_grad,
        qk_threshold=options.qk_clip_threshold,
        qk_clips=options.qk_clip == "clip",
        host_fraction=options.optimizer_offload_fraction,
    )


def _muonclip(config: Config, model: Model, topology: Topology, device: torch.device) -> MuonClip:
    recorded = records_max_logits(config)
    return MuonClip(
        model.chunks,
        model.parameters(),
        assignment_of(config),
        topology,
        muonclip_options(config.optimizer, parameter_dtype(config), device),
        max_logits=record_max_logits(model, topology, device) if recorded else None,
        num_decoder_layers=config.model.num_layers,
    )
