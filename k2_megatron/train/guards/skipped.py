# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Steps whose gradient or loss was not finite: how many there were, and how many in a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from k2_megatron.train import tags


@dataclass(kw_only=True)
class SkippedSteps:
    """Counts skipped steps of the whole run, restarts included; the same on all ranks.

    Attributes:
        total: since the run began.
        in_a_row: up to the last step; 0 once a step counts.
    """

    total: int = 0
    in_a_row: int = 0

    def count(self, *, skipped: bool) -> None:
        """Take a step that was just done."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def metrics(self) -> dict[str, float]:
        """Both numbers by TensorBoard tag."""
        return {
            tags.SKIPPED_STEPS: float(self.total),
            tags.SKIPPED_IN_A_ROW: float(self.in_a_row),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON data."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the numbers of a checkpoint."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]
