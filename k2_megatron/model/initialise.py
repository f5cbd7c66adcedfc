# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Initial weights that depend on the seed and the matrix alone, not on layout or platform.

Every canonical matrix has its own random stream, cut into blocks of rows, so that each rank
draws just the rows it holds and every layout begins with the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
    blocks: list[_Block] = []
    for entry in geometry:
        parameter = parameters.pop(entry.name)
        if entry.is_vector:
            parameter.data.fill_(1.0)
            continue
        assert tuple(parameter.shape) == entry.shape, (entry.name, parameter.shape, entry.shape)
        for piece in entry.pieces:
            target = parameter.data[slice(*piece.local_rows), slice(*piece.local_cols)]
            held = (piece.rows[1] - piece.rows[0], piece.cols[1] - piece.cols[0])
            assert tuple(target.shape) == held, (entry.name, piece)
            columns = shapes[piece.key][1]
            blocks += _blocks(piece.key, piece.rows, piece.cols, columns, target)
    assert not parameters, f"not in the geometry table: {sorted(parameters)}"
    # One generator draws some 130 million numbers a second: minutes for a rank of a large model.
    with ThreadPoolExecutor(DRAWING_THREADS) as threads:
        for _ in threads.map(lambda block: _fill(block, seed, std), blocks):
            pass


@dataclass(frozen=True, kw_only=True)
class _Block:
    """What a rank holds of a block of rows of a canonical matrix.

    Attributes:
        key: the matrix.
        number: of the block in it.
        num_cols: of the matrix.
        rows, cols: the part in the block.
        target: where it goes.
    """

    key: str
    number: int
    num_cols: int
    rows: slice
    cols: slice
    target: torch.Tensor


def _blocks(
    key: str, rows: tuple[int, int], cols: tuple[int, int], num_cols: int, target: torch.Tensor
) -> Iterator[_Block]:
    """The blocks in which rows [begin, end) of a matrix lie."""
    begin, end = rows
    for number in range(begin // ROWS_PER_BLOCK, -(-end // ROWS_PER_BLOCK)):
        first = number * ROWS_PER_BLOCK
        low, high = max(begin, first), min(end, first + ROWS_PER_BLOCK)
        yield _Block(
            key=key,
            number=number,
            num_cols=num_cols,
            rows=slice(low - first, high - first),
            cols=slice(*cols),
            target=target[low - begin : high - begin],
        )


def _fill(block: _Block, seed: int, std: float, device: torch.device | str = "cpu") -> None:
    """Draw a block, fp32 [ROWS_PER_BLOCK, num_cols], and write what is held of it.

    A device's generator draws other numbers than another's.
    """
    digest = hashlib.sha256(f"{seed}/{block.key}/{block.number}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.randn(ROWS_PER_BLOCK, block.num_cols, generator=generator, device=device)
    block.target.copy_(values[block.rows, block.cols].mul_(std))
