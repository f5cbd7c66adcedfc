# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A step record with every value present, for the tests of what is logged."""

from typing import Any

from k2_megatron.train import tags
from k2_megatron.train.metrics import StepRecord

DEVICE_VALUES = {
    tags.DEVICE_POWER: 651.5,
    tags.DEVICE_SM_CLOCK: 1980.0,
    tags.DEVICE_MEMORY_CLOCK: 2619.0,
    tags.DEVICE_MEMORY_USED: 70e9,
    tags.DEVICE_UTILIZATION: 99.0,
    tags.DEVICE_TEMPERATURE: 61.0,
}

MUONCLIP_VALUES = {
    tags.QK_MAX_LOGIT: 125.0,
    tags.QK_MAX_LOGIT_LAYER.format(layer=1): 125.0,
    tags.QK_MAX_LOGIT_LAYER.format(layer=2): 12.5,
    tags.QK_HEADS_CLIPPED: 3.0,
    tags.QK_SMALLEST_GAMMA: 0.75,
    tags.MUON_UPDATE_RMS.format(kind="router"): 0.21875,
    tags.MUON_UPDATE_RMS.format(kind="experts"): 0.1875,
    tags.MUON_SECONDS: 0.125,
    tags.MUON_BYTES: 3e9,
    tags.MUON_TENSOR_BYTES: 1e9,
}

GUARD_VALUES = {
    tags.SKIPPED_STEPS: 4.0,
    tags.SKIPPED_IN_A_ROW: 2.0,
    tags.STRAGGLER_MIN: 0.0625,
    tags.STRAGGLER_MEDIAN: 0.125,
    tags.STRAGGLER_MAX: 0.25,
    tags.STRAGGLER_RANK: 3.0,
}

OFFLOAD_VALUES = {
    tags.OFFLOAD_SENT: 5e9,
    tags.OFFLOAD_FETCHED: 5e9,
    tags.OFFLOAD_STAYED: 1e6,
    tags.OFFLOAD_WAIT_OUT: 0.03125,
    tags.OFFLOAD_WAIT_IN: 0.015625,
    tags.OFFLOAD_HIGH_WATER: 2e9,
    tags.OFFLOAD_STATE: 4e9,
    tags.OFFLOAD_STATE_WAIT: 0.0625,
}

EXTRA = DEVICE_VALUES | MUONCLIP_VALUES | GUARD_VALUES | OFFLOAD_VALUES


def full_record(step: int = 1, **changes: Any) -> StepRecord:
    """Return a record whose every derived number is known: see VALUES in the tests."""
    values: dict[str, Any] = {
        "step": step,
        "loss": 2.5,
        "lr": 2e-4,
        "grad_norm": 0.75,
        "tokens": 4096,
        "step_seconds": 0.5,
        "skipped": False,
        "model_flops": 8e12,
        "world_size": 4,
        "consumed_tokens": 4096 * step,
        "phase": "main",
        "phase_number": 2,
        "memory_bytes": 3 * 2**30,
        "valid_loss": 2.625,
        "expert_load": {1: [10, 10, 20, 0], 2: [5, 5, 5, 5]},
        "expert_bias": {1: [0.5, -0.25, 0.0, 0.0], 2: [0.0, 0.125, 0.0, 0.0]},
        "extra": EXTRA,
    }
    return StepRecord(**(values | changes))


def bare_record(step: int = 1, **changes: Any) -> StepRecord:
    """Return the record of a dense model on the CPU, without validation."""
    absent: dict[str, Any] = dict.fromkeys(
        ("memory_bytes", "valid_loss", "phase", "expert_load", "expert_bias")
    )
    return full_record(step, **(absent | {"extra": {}} | changes))
