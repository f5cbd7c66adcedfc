# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""MuonClip's plan as text: which matrix takes which rule, who orthogonalises. No torch here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from k2_megatron.parallel.muonclip.rules import Assignment


def describe_rules(assignment: Assignment, repeats: Callable[[str], int] = lambda _: 1) -> str:
    """One line for each kind of matrix, with the layers and experts it stands for.

    Args:
        assignment: the rule of every matrix, or of one of each kind.
        repeats: how many matrices one name stands for.
    """
    shapes: dict[str, tuple[str, str, str, str]] = {}
    counts = Counter[str]()
    for matrix in assignment.matrices.values():
        name = _without_numbers(matrix.name)
        counts[name] += repeats(matrix.name)
        group = "edp" if matrix.kind == "experts" else "dp_cp"
        size = f"{matrix.rows} x {matrix.cols}"
        shapes[name] = "muon", size, f"{matrix.scale:.2f}", group
    for key, reason in assignment.adamw.items():
        name = _without_numbers(key)
        counts[name] += repeats(key)
        shapes[name] = f"adamw: {reason}", "", "", "dp_cp"
    rows = [("matrix", "number", "rule", "rows x columns", "scale", "sharded over")]
    rows += [(name, str(counts[name]), *shapes[name]) for name in shapes]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def describe_placement(
    num_matrices: int, balance: float, data_mib: float, tensor_mib: float
) -> str:
    """One line on the work of Newton-Schulz.

    Args:
        num_matrices: logical matrices, each orthogonalised once a step.
        balance: longest queue of a stage's ranks over their mean, of the worst stage.
        data_mib, tensor_mib: MiB that travel in a step over all ranks, for matrices that shards
            cut and for those that tensor parallelism cuts.
    """
    return (
        f"Newton-Schulz: {num_matrices} matrices, longest queue {balance:.2f} of its stage's mean; "
        f"gathered a step over all ranks: {data_mib:.1f} MiB across shards, {tensor_mib:.1f} MiB "
        "across tensor ranks"
    )


def _without_numbers(name: str) -> str:
    return re.sub(r"\.\d+", ".*", name)
