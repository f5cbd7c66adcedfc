# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a cross-field rule says when it refuses a configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """One combination that is not allowed.

    Attributes:
        keys: dotted keys of every value the verdict rests on; the first is the one to change.
        allowed: what the first key may be instead, in words.
        reason: why, in one line.
    """

    keys: tuple[str, ...]
    allowed: str
    reason: str
