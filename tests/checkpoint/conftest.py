# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The fixtures of checkpoint_helpers, for every test of this folder."""

from checkpoint_helpers import folder, two_ranks

__all__ = ["folder", "two_ranks"]
