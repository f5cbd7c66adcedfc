# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about the optimizer. Each function is named for what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from k2_megatron.config.config import Config
from k2_megatron.config.refusal import Refusal


def refuse_heads_apart_in_whole_blocks(config: Config) -> Iterable[Refusal]:
    """A head of q_up or kv_up is a part of each of its blocks, which must be apart first."""
    optimizer = config.optimizer
    apart = optimizer.muon_split_q_up and optimizer.muon_split_kv_up
    if optimizer.type == "muonclip" and optimizer.muon_per_head and not apart:
        yield Refusal(
            (
                "optimizer.muon_per_head",
                "optimizer.muon_split_q_up",
                "optimizer.muon_split_kv_up",
            ),
            "false, or both splits true as well",
            "heads are divided within blocks that are apart",
        )


def refuse_newton_schulz_that_runs_away(config: Config) -> Iterable[Refusal]:
    """A singular value moves by a s + b s^3 + c s^5 a step; float16 needs it to stay under 2."""
    optimizer = config.optimizer
    if optimizer.type != "muonclip":
        return
    a, b, c = optimizer.muon_ns_coefficients
    for begin in range(1, 201):
        value = begin / 200
        for step in range(1, optimizer.muon_ns_steps + 1):
            value = a * value + b * value**3 + c * value**5
            if not abs(value) < 2:
                yield Refusal(
                    ("optimizer.muon_ns_coefficients", "optimizer.muon_ns_steps"),
                    "coefficients that keep every singular value under 2",
                    f"one of {begin / 200:g} would be {value:.3g} after step {step}",
                )
                return


def refuse_more_on_the_host_than_there_is(config: Config) -> Iterable[Refusal]:
    """The fraction is one of the whole state."""
    if config.optimizer.optimizer_offload_fraction > 1:
        yield Refusal(
            ("optimizer.optimizer_offload_fraction",),
            "a number from 0 to 1",
            "it is a part of the optimizer's state",
        )


OPTIMIZER_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_heads_apart_in_whole_blocks,
    refuse_newton_schulz_that_runs_away,
    refuse_more_on_the_host_than_there_is,
)
