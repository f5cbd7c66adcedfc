# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `memory` section: what activations are kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from k2_megatron.config.option import option


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What is done about activation memory (report section 2.4.3)."""

    preset: Literal["none"] = option(
        "none", "none: every activation stays on the device in its own format."
    )
