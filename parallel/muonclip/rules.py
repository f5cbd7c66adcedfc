# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which parameter gets which update, and what is orthogonalised as one matrix. No torch here.

Moonlight (arXiv 2502.16982) and the K2 report: hidden matrices take Muon; embedding, head and norm
gains take AdamW. A *logical matrix* is what Newton-Schulz sees: by default the canonical matrix
(gate and up apart, MLA's blocks apart, every expert by itself); settings join neighbours or cut
the MLA up-projections head by head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from k2_megatron.errors import UserError

KINDS = (
    "router",
    "q_down",
    "q_up",
    "kv_down",
    "kv_up",
    "attention_out",
    "dense_mlp",
    "experts",
    "shared_expert",
    "mtp_join",
)

_MUON = {
    r".+\.router": "router",
    r".+\.attention\.q_down": "q_down",
    r".+\.attention\.q_up\.(nope|rope)": "q_up",
    r".+\.attention\.kv_down\.(latent|rope)": "kv_down",
    r".+\.attention\.kv_up\.(k|v)": "kv_up",
    r".+\.attention\.out": "attention_out",
    r".+\.mlp\.(gate|up|down)": "dense_mlp",
    r".+\.experts\.\d+\.(gate|up|down)": "experts",
    r".+\.shared_expert\.(gate|up|down)": "shared_expert",
    r"mtp\.\d+\.join": "mtp_join",
}
_ADAMW = {
    r"embedding": "embedding",
    r"output": "head",
    r"(.+\.)?(attention|mlp|q|kv|final|embedding|hidden)_norm": "norm gain",
}
# Blocks that one setting joins, in the order in which they are put under each other.
_JOINED = {
    "split_q_up": ("q_up.nope", "q_up.rope"),
    "split_kv_up": ("kv_up.k", "kv_up.v"),
    "split_kv_down": ("kv_down.latent", "kv_down.rope"),
    "split_gate_up": (".gate", ".up"),
}


@dataclass(frozen=True, kw_only=True)
class MuonRules:
    """The choices that K2's report leaves open or that an experiment may change.

    Attributes:
        split_gate_up, split_q_up, split_kv_up, split_kv_down: orthogonalise the two blocks apart.
        per_head: every head of q_up and kv_up is a matrix of its own; needs both to be split.
        router: the router's weight takes Muon, else AdamW.
        update_rms: 0.2 in 0.2 sqrt(max(rows, columns)), the RMS that the update is given.
    """

    split_gate_up: bool = True
    split_q_up: bool = True
    split_kv_up: bool = True
    split_kv_down: bool = True
    per_head: bool = False
    router: bool = True
    update_rms: float = 0.2


@dataclass(frozen=True, kw_only=True)
class LogicalMatrix:
    """What one Newton-Schulz iteration takes. scale: factor of its result before the rate."""

    name: str
    kind: str
    rows: int
    cols: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Block:
    """Canonical rows [begin, end) that are rows [row, row + end - begin) of a logical matrix."""

    matrix: str
    begin: int
    end: int
    row: int


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Every canonical matrix of the model under its update rule.

    Attributes:
        matrices: logical matrices by name.
        blocks: blocks of each canonical matrix that takes Muon.
        adamw: the reason, by canonical matrix that takes AdamW.
    """

    matrices: dict[str, LogicalMatrix] = field(default_factory=dict)
    blocks: dict[str, tuple[Block, ...]] = field(default_factory=dict)
    adamw: dict[str, str] = field(default_factory=dict)

    def uses_muon(self, key: str) -> bool:
        """Whether a canonical matrix takes Muon."""
        return key in self.blocks


def assign(shapes: Mapping[str, tuple[int, int]], num_heads: int, rules: MuonRules) -> Assignment:
    """Give every canonical matrix its rule.

    Args:
        shapes: (rows, columns) by canonical name.
        num_heads: attention heads, whose rows of q_up and kv_up follow each other.

    Raises:
        UserError: no rule covers a matrix.
    """
    assignment = Assignment()
    for key, (rows, cols) in shapes.items():
        reason = _match(_ADAMW, key)
        kind = _match(_MUON, key)
        if kind == "router" and not rules.router:
            reason, kind = "router", None
        if reason is not None:
            assignment.adamw[key] = reason
        elif kind is not None:
            blocks, matrices = _blocks(key, kind, rows, cols, shapes, num_heads, rules)
            assignment.blocks[key] = blocks
            assignment.matrices.update({matrix.name: matrix for matrix in matrices})
        else:
            raise UserError(f"MuonClip has no rule for the parameter {key} [{rows}, {cols}]")
    return assignment


def _match(table: Mapping[str, str], key: str) -> str | None:
    found = (name for pattern, name in table.items() if re.fullmatch(pattern, key))
    return next(found, None)


def _blocks(
    key: str,
    kind: str,
    rows: int,
    cols: int,
    shapes: Mapping[str, tuple[int, int]],
    num_heads: int,
    rules: MuonRules,
) -> tuple[tuple[Block, ...], list[LogicalMatrix]]:
    """Where the rows of one canonical matrix go, and the logical matrices they make up."""

    def matrix(name: str, height: int) -> LogicalMatrix:
        scale = rules.update_rms * math.sqrt(max(height, cols))
        return LogicalMatrix(name=name, kind=kind, rows=height, cols=cols, scale=scale)

    for setting, (first, second) in _JOINED.items():
        if getattr(rules, setting) or not key.endswith((first, second)):
            continue
        base = key.removesuffix(first if key.endswith(first) else second)
        above = shapes[base + first][0]
        name = f"{base.removesuffix('.')}.{setting.removeprefix('split_')}"
        block = Block(matrix=name, begin=0, end=rows, row=0 if key.endswith(first) else above)
        return (block,), [matrix(name, above + shapes[base + second][0])]
    if rules.per_head and kind in ("q_up", "kv_up"):
        height = rows // num_heads
        heads = [matrix(f"{key}.head.{head}", height) for head in range(num_heads)]
        blocks = tuple(
            Block(matrix=one.name, begin=head * height, end=(head + 1) * height, row=0)
            for head, one in enumerate(heads)
        )
        return blocks, heads
    return (Block(matrix=key, begin=0, end=rows, row=0),), [matrix(key, rows)]
