# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every element of every matrix is there exactly once, or what is wrong is named."""

import random
from itertools import pairwise

import pytest
import torch
from checkpoint_helpers import holdings_of, load_matrix, matrix_of, save_step

from k2_megatron.checkpoint.copies import check_copies
from k2_megatron.checkpoint.data_file import Holding
from k2_megatron.checkpoint.index import Index, Matrix, Part, check_shapes, tiling_flaw
from k2_megatron.checkpoint.inspection import inspect
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.resume import load
from k2_megatron.errors import CheckpointError
from k2_megatron.parallel.model_space import Region
from k2_megatron.parallel.rectangles import row_rectangles


def matrix(*rectangles, rows=8, cols=6):
    parts = [Part(0, 0, r, c) for r, c in rectangles]
    return Matrix(rows=rows, cols=cols, dtype="float32", parts=parts)


@pytest.mark.parametrize(
    ("rectangles", "flaw"),
    [
        ([((0, 8), (0, 6))], None),
        ([((0, 8), (3, 6)), ((0, 5), (0, 3)), ((5, 8), (0, 3))], None),
        ([], "rows 0:8, columns 0:6 are missing"),
        ([((0, 7), (0, 6))], "rows 7:8, columns 0:6 are missing"),
        ([((0, 8), (0, 5))], "rows 0:8, columns 5:6 are missing"),
        ([((0, 4), (0, 6)), ((3, 8), (0, 6))], "rows 3:4, columns 0:6 are there more than once"),
        ([((0, 8), (0, 6)), ((2, 3), (1, 4))], "rows 2:3, columns 1:4 are there more than once"),
        # As many elements as the matrix has, one of them twice and one not at all.
        ([((0, 7), (0, 6)), ((7, 8), (0, 5)), ((6, 7), (5, 6))], "rows 6:7, columns 5:6 are there"),
        ([((0, 9), (0, 6))], "rows 0:9, columns 0:6 lie outside of it"),
    ],
)
def test_holes_and_overlaps_are_found(rectangles, flaw):
    found = tiling_flaw(matrix(*rectangles))
    assert found is None if flaw is None else str(found).startswith(flaw)


def test_every_cut_into_flat_intervals_tiles_and_none_may_be_left_out():
    chance = random.Random(3)
    for _ in range(100):
        cuts = sorted({0, 48, *chance.sample(range(1, 48), chance.randint(0, 6))})
        rectangles = [
            rectangle
            for begin, end in pairwise(cuts)
            for rectangle in row_rectangles(begin, end, 6)
        ]
        chance.shuffle(rectangles)
        assert tiling_flaw(matrix(*rectangles)) is None
        assert tiling_flaw(matrix(*rectangles[1:])) is not None
        assert tiling_flaw(matrix(*rectangles, rectangles[0])) is not None


def test_matrices_that_nobody_expects_or_that_are_missing():
    index = Index(files=[], matrices={"weight/a": matrix(), "momentum/b": matrix()})
    with pytest.raises(CheckpointError) as caught:
        check_shapes(index, {"weight/a": (8, 7), "exp_avg/b": (8, 6)}, "here")
    assert str(caught.value).splitlines() == [
        "here:",
        "  weight/a: [8, 6] found, not [8, 7]",
        "  exp_avg/b [8, 6]: missing",
        "  momentum/b: not part of this run",
    ]


def test_a_hole_is_refused_before_anything_is_saved(folder):
    (holding,) = holdings_of(0, 1, 1)
    short = Holding(
        kind="weight",
        regions=(Region(key="matrix", rows=(0, 7), cols=(0, 6)),),
        values=holding.values[:42].clone(),
    )
    with pytest.raises(CheckpointError) as caught:
        save_step(folder, 1, 0, 1, holdings=[short])
    assert "not the whole model" in str(caught.value)
    assert "weight/matrix [8, 6]: rows 7:8, columns 0:6 are missing" in str(caught.value)
    assert list(folder.iterdir()) == []


def test_a_load_that_needs_more_than_there_is_names_it(folder):
    path = save_step(folder, 1, 0, 1).path
    holding = Holding(
        kind="momentum",
        regions=(Region(key="matrix", rows=(0, 8), cols=(0, 6)),),
        values=torch.zeros(48),
    )
    shapes = {"weight/matrix": (8, 6), "momentum/matrix": (8, 6)}
    with pytest.raises(CheckpointError, match=r"momentum/matrix \[8, 6\]: missing"):
        load(path, [holding], shapes, Ranks(0, 1))
    with pytest.raises(CheckpointError, match="weight/matrix: not part of this run"):
        load(path, [], {}, Ranks(0, 1))


def test_any_rectangle_can_be_read_in_another_dtype(folder, two_ranks):
    (path, _) = two_ranks(lambda rank: save_step(folder, 3, rank, 2).path)
    holding = Holding(
        kind="weight",
        regions=(
            Region(key="matrix", rows=(1, 5), cols=(2, 5)),
            Region(key="matrix", rows=(7, 8), cols=(0, 6)),
        ),
        values=torch.zeros(18, dtype=torch.float64),
    )
    load(path, [holding], {"weight/matrix": (8, 6)}, Ranks(0, 1))
    whole = matrix_of(3).double()
    assert torch.equal(holding.values[:12].view(4, 3), whole[1:5, 2:5])
    assert torch.equal(holding.values[12:], whole[7])
    assert torch.equal(load_matrix(path), matrix_of(3).flatten())
    assert inspect(path).problems == ()


def _copies(begin, end, copy_of, change=None):
    values = matrix_of(1).flatten()[begin:end].clone()
    if change is not None:
        values.view(torch.int32)[change] ^= 1
    places = [
        Region(key="matrix", rows=rows, cols=cols) for rows, cols in row_rectangles(begin, end, 6)
    ]
    return Holding(kind="weight", regions=tuple(places), values=values, copy_of=copy_of)


@pytest.mark.parametrize("change", [None, 0, 3, 19])
def test_copies_are_compared_however_they_are_divided(change):
    one = [_copies(0, 20, "one"), _copies(20, 48, "one")]
    other = [_copies(0, 7, "other"), _copies(7, 27, "other", change), _copies(27, 48, "other")]
    if change is None:
        check_copies([*one, *other], {"weight/matrix": (8, 6)}, Ranks(0, 1))
        return
    with pytest.raises(CheckpointError, match="weight/matrix rows 0:8, columns 0:6"):
        check_copies([*one, *other], {"weight/matrix": (8, 6)}, Ranks(0, 1))


def test_swapped_copies_are_not_equal():
    """The same values at other places."""
    one, other = _copies(0, 48, "one"), _copies(0, 48, "other")
    other.values[[3, 40]] = other.values[[40, 3]]
    with pytest.raises(CheckpointError, match="have different ones of weight/matrix"):
        check_copies([one, other], {"weight/matrix": (8, 6)}, Ranks(0, 1))
