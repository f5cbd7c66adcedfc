# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `precision` section: in which number format the model computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from k2_megatron.config.option import option


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number formats. Gradients are accumulated and master weights kept in fp32 in either case."""

    dtype: Literal["bf16", "fp32"] = option(
        "bf16",
        "Format of parameters and activations. K2 trains in bf16 with fp32 gradient "
        "accumulation (report section 2.4.2); fp32 is for tests and comparisons.",
    )
