# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `optimizer` section: the update rule and its constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from k2_megatron.config.option import option


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule. Its state is sharded over data parallelism (ZeRO-1)."""

    type: Literal["adamw"] = option("adamw", "Update rule.")
    weight_decay: float = option(
        0.1,
        "Decoupled weight decay, multiplied by the learning rate; of norm gains too. "
        "Report section 2.5.",
        minimum=0,
    )
    clip_grad: float = option(
        1.0,
        "Largest 2-norm of the whole gradient; larger ones are scaled down to it. 0: no "
        "clipping. K2's is undisclosed, 1.0 is DeepSeek-V3's.",
        minimum=0,
    )
    adam_beta1: float = option(0.9, "Decay of AdamW's first moment.", minimum=0, below=1)
    adam_beta2: float = option(0.95, "Decay of AdamW's second moment.", minimum=0, below=1)
    adam_eps: float = option(1e-8, "Added to AdamW's denominator.", above=0)
