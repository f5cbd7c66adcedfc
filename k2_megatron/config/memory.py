# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `memory` section: what activations are kept in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from k2_megatron.config.numbers import PATTERN
from k2_megatron.config.option import option, required

_NUMBERS_WORDS = "numbers and ranges such as 0-3, 7"
_BUDGET = r"((100|\d{1,2})%|\d+(\.\d+)?GiB)"
_BUDGETS = rf"{_BUDGET}(, ?{_BUDGET})*"


@dataclass(frozen=True, kw_only=True)
class TensorPolicyConfig:
    """Another policy than the preset's for some tensors."""

    tensors: str = field(
        metadata=required(
            "Names of activations, separated by commas.",
            pattern=r"\w+(, ?\w+)*",
            pattern_words="names separated by commas",
        )
    )
    policy: Literal["keep", "recompute", "fp8", "host", "fp8+host"] = option(
        "keep",
        "keep: in its own format. recompute: rebuilt in backward. fp8: its FP8 copy is kept, "
        "E4M3 in tiles of 1 x 128. host, fp8+host: the tensor, or its FP8 copy, is in host memory "
        "while other micro-batches or layers are computed.",
    )
    layers: str | None = option(
        None,
        "Layers counted from 0, MTP layers behind the others. null: all.",
        pattern=PATTERN,
        pattern_words=_NUMBERS_WORDS,
    )
    stages: str | None = option(
        None,
        "Pipeline ranks. null: all.",
        pattern=PATTERN,
        pattern_words=_NUMBERS_WORDS,
    )


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What is done about activation memory (report section 2.4.3; docs/memory.md)."""

    preset: Literal["none", "k2", "k2-lean", "k2-full"] = option(
        "none",
        "none: every activation stays on the device in its own format. k2: norms, SwiGLU and MLA's "
        "up-projections are recomputed, the inputs of experts and of SwiGLU are kept in FP8. "
        "k2-lean: the former, and the experts' block up to SwiGLU, dispatch included, is "
        "recomputed; nothing is rounded. k2-full: k2, and all that remains is in host memory "
        "while other micro-batches or layers are computed.",
    )
    host_budget: str | None = option(
        None,
        "Room in host memory: a share of what would travel, such as 50%, or GiB of each rank, such "
        "as 40GiB; one for all pipeline stages or, separated by commas, one for each. What finds "
        "no room stays on the device. null: room for all.",
        pattern=_BUDGETS,
        pattern_words="shares such as 50% or sizes such as 40GiB, separated by commas",
    )
    host_headroom: float = option(
        1.25,
        "Room in host memory for the tokens of routed experts, over an even share. A rank to "
        "which the router sends more keeps the rest on the device.",
        minimum=1,
    )
    tensors: tuple[TensorPolicyConfig, ...] = option(
        (),
        "Changes to the preset, in order: a list of mappings with tensors, policy, and optionally "
        "layers and stages.",
    )


def names_host(memory: MemoryConfig) -> bool:
    """Whether any activation is to be in host memory."""
    return memory.preset == "k2-full" or any(
        change.policy in ("host", "fp8+host") for change in memory.tensors
    )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Room in host memory for what travels; one of the two.

    Attributes:
        share: between 0 and 1.
        nbytes: of a rank.
    """

    share: float | None = None
    nbytes: float | None = None


def budgets_of(text: str | None) -> list[Budget]:
    """What a `host_budget` says, for all stages or one by one; empty for null."""
    found = []
    for part in (text or "").replace(" ", "").split(","):
        if part.endswith("%"):
            found.append(Budget(share=int(part[:-1]) / 100))
        elif part:
            found.append(Budget(nbytes=float(part.removesuffix("GiB")) * 2**30))
    return found


def budget_of(text: str | None, stage: int) -> Budget | None:
    """What a `host_budget` says for a pipeline stage; None: no limit."""
    found = budgets_of(text)
    return found[stage if len(found) > 1 else 0] if found else None
