# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the curves of benchmarks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def save_curves(figure: Any, panels: Sequence[Any], out: Path) -> None:
    """Give each panel its legend and grid, and write the picture.

    Args:
        figure: matplotlib's.
        panels: its axes.
        out: a PNG file; its folder is made.
    """
    for axes in panels:
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
