# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What may be done with an activation between forward and backward, and the presets of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

# E4M3 in tiles of 1 x 128 with one fp32 scale each (K2 report, section 2.4.3).
FP8_BYTES = 1 + 4 / 128


class Policy(Enum):
    """Where an activation is between forward and backward."""

    KEEP = "keep"
    RECOMPUTE = "recompute"
    FP8 = "fp8"
    HOST = "host"
    FP8_HOST = "fp8 on host"

    def device_bytes(self, width: int) -> float:
        """Bytes of device memory of one element of `width` bytes."""
        return {Policy.KEEP: float(width), Policy.FP8: FP8_BYTES}.get(self, 0.0)

    def host_bytes(self, width: int) -> float:
        """Bytes of pinned host memory of one element of `width` bytes."""
        return {Policy.HOST: float(width), Policy.FP8_HOST: FP8_BYTES}.get(self, 0.0)


Policies = Mapping[str, Policy]

# By tensor names of `activations`. Norm outputs, SwiGLU, MLA's up-projections and the experts'
# down-projection are rebuilt from what is beside them (K2 report, section 2.4.3).
_RECOMPUTED: Policies = dict.fromkeys(
    (
        "attention_norm_output",
        "query_latent_norm_output",
        "kv_latent_norm_output",
        "query",
        "key",
        "value",
        "mlp_norm_output",
        "expert_swiglu_output",
        "expert_output",
        "shared_swiglu_output",
        "dense_swiglu_output",
    ),
    Policy.RECOMPUTE,
)
_IN_FP8 = ("expert_input", "expert_swiglu_input", "shared_swiglu_input", "dense_swiglu_input")
_REMAINING = (
    "attention_input",
    "query_latent",
    "kv_latent",
    "attention_output",
    "mlp_input",
)

PRESETS: Mapping[str, Policies] = {
    "none": {},
    "k2-lean": _RECOMPUTED,
    "k2": {**_RECOMPUTED, **dict.fromkeys(_IN_FP8, Policy.FP8)},
    "k2-full": {
        **_RECOMPUTED,
        **dict.fromkeys(_IN_FP8, Policy.FP8_HOST),
        **dict.fromkeys(_REMAINING, Policy.HOST),
    },
}


def policy_of(policies: Policies, tensor: str) -> Policy:
    """The policy of a tensor; what is not named is kept."""
    return policies.get(tensor, Policy.KEEP)
