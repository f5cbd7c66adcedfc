# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What may be done with an activation between forward and backward, and the presets of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

# E4M3 in tiles of 1 x 128 with one fp32 scale each (K2 report, section 2.4.3).
TILE = 128


class Policy(Enum):
    """Where an activation is between forward and backward."""

    KEEP = "keep"
    RECOMPUTE = "recompute"
    FP8 = "fp8"
    HOST = "host"
    FP8_HOST = "fp8+host"

    @property
    def travels(self) -> bool:
        """Whether it, or its copy, is in host memory meanwhile."""
        return self in (Policy.HOST, Policy.FP8_HOST)

    def device_bytes(self, width: int, cols: int = TILE) -> float:
        """Bytes of device memory of one element of `width` bytes in a row of `cols`."""
        return {Policy.KEEP: float(width), Policy.FP8: fp8_bytes(cols)}.get(self, 0.0)

    def host_bytes(self, width: int, cols: int = TILE) -> float:
        """Bytes of pinned host memory of one element of `width` bytes in a row of `cols`."""
        return {Policy.HOST: float(width), Policy.FP8_HOST: fp8_bytes(cols)}.get(self, 0.0)


def fp8_bytes(cols: int) -> float:
    """Bytes of an element in FP8, its share of the scales of a row of `cols` included."""
    return 1 + 4 * -(-cols // TILE) / cols


Policies = Mapping[str, Policy]

# MLA's up-projections with the norms in front of them: one pass rebuilds them all, and
# Transformer Engine computes norm and projection as one.
MLA_UP = ("query_latent_norm_output", "kv_latent_norm_output", "query", "key", "value")

# By tensor names of `k2_megatron.memory.tensors`. Norm outputs, SwiGLU, MLA's up-projections and
# the experts' down-projection are rebuilt from what is beside them (K2 report, section 2.4.3).
RECOMPUTED: Policies = dict.fromkeys(
    (
        "attention_norm_output",
        *MLA_UP,
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
    "k2": {**RECOMPUTED, **dict.fromkeys(_IN_FP8, Policy.FP8)},
    "k2-lean": {
        **RECOMPUTED,
        **dict.fromkeys(("expert_input", "expert_swiglu_input"), Policy.RECOMPUTE),
    },
    "k2-full": {
        **RECOMPUTED,
        **dict.fromkeys(_IN_FP8, Policy.FP8_HOST),
        **dict.fromkeys(_REMAINING, Policy.HOST),
    },
}


def policy_of(policies: Policies, tensor: str) -> Policy:
    """The policy of a tensor; what is not named is kept."""
    return policies.get(tensor, Policy.KEEP)


def on_host(layers: Iterable[Policies]) -> bool:
    """Whether any tensor of any layer travels to host memory."""
    return any(policy.travels for policies in layers for policy in policies.values())
