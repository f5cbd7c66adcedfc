# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Initial weights that depend on the seed and the matrix alone, not on layout or platform.

Every canonical matrix has its own random stream, cut into blocks of rows, so that each rank
draws just the rows it holds and every layout begins with the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from k2_megatron.parallel.geometry import ParameterGeometry

ROWS_PER_BLOCK = 256
DRAWING_THREADS = 8


def initialise_chunk(
    module: torch.nn.Module,
    geometry: Iterable[ParameterGeometry],
    shapes: dict[str, tuple[int, int]],
    *,
    seed: int,
    std: float,
) -> None:
    """Fill every parameter of one model chunk: matrices normal(0, std), norm gains 1.

    Drawn in fp32 on the CPU, then cast to the parameter's dtype.

    Args:
        module: the GPTModel of the chunk.
        geometry: its geometry table; must name every parameter.
        shapes: (rows, columns) of the canonical matrices.
        seed: seed of the run.
        std: standard deviation of the matrices.
    """
    parameters = dict(module.named_parameters())
    # One generator draws some 130 million numbers a second: minutes for a rank of a large model.
    with ThreadPoolExecutor(DRAWING_THREADS) as threads:
        for entry in geometry:
            parameter = parameters.pop(entry.name)
            if entry.is_vector:
                parameter.data.fill_(1.0)
                continue
            assert tuple(parameter.shape) == entry.shape, (entry.name, parameter.shape, entry.shape)
            for piece in entry.pieces:
                columns = shapes[piece.key][1]
                values = _draw_rows(piece.key, piece.rows, columns, seed, threads)
                target = parameter.data[slice(*piece.local_rows), slice(*piece.local_cols)]
                target.copy_(values[:, slice(*piece.cols)].mul_(std))
    assert not parameters, f"not in the geometry table: {sorted(parameters)}"


def _draw_rows(
    key: str, rows: tuple[int, int], num_cols: int, seed: int, threads: ThreadPoolExecutor
) -> torch.Tensor:
    """Rows [begin, end) of the standard normal matrix `key`, fp32 [rows, num_cols]."""
    begin, end = rows
    first = begin // ROWS_PER_BLOCK

    def draw(block: int) -> torch.Tensor:
        digest = hashlib.sha256(f"{seed}/{key}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(ROWS_PER_BLOCK, num_cols, generator=generator)

    blocks = list(threads.map(draw, range(first, -(-end // ROWS_PER_BLOCK))))
    offset = begin - first * ROWS_PER_BLOCK
    return torch.cat(blocks)[offset : offset + end - begin]
