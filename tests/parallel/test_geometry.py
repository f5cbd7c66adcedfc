# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The geometry table tiles every canonical matrix, in every layout and both namings, K2's too.

That its names and shapes are those of the built model, and its rows and columns the right ones,
is for tests/distributed and tests/gpu to show.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from k2_megatron.config.presets import model_from_preset
from k2_megatron.parallel.canonical import ModelShape, canonical_shapes
from k2_megatron.parallel.geometry import ParameterGeometry, Piece, RankPlace, chunk_geometry
from k2_megatron.planner.parameters import count_parameters
from tests.parallel.layout_helpers import even_layout

TINY = ModelShape(
    num_layers=5,
    hidden_size=16,
    num_heads=4,
    q_lora_rank=8,
    kv_lora_rank=6,
    qk_head_dim=3,
    qk_rope_dim=2,
    v_head_dim=5,
    ffn_size=12,
    num_dense_layers=1,
    num_experts=8,
    expert_size=4,
    shared_expert_size=8,
    vocab_size=24,
    num_mtp_layers=1,
)
NO_Q_LORA = ModelShape(**{**vars(TINY), "q_lora_rank": None, "num_mtp_layers": 0})


def area(piece: Piece) -> int:
    return (piece.rows[1] - piece.rows[0]) * (piece.cols[1] - piece.cols[0])


def geometry_of_all_ranks(
    shape: ModelShape, tp: int, ep: int, etp: int, pp: int, vpp: int, te: bool
) -> list[tuple[RankPlace, ParameterGeometry]]:
    layout = even_layout(
        num_layers=shape.num_layers,
        pipeline_size=pp,
        virtual_size=vpp,
        num_mtp_layers=shape.num_mtp_layers,
    )
    found = []
    for stage in layout.stages:
        for tensor_rank, (expert_rank, expert_tensor_rank) in product(
            range(tp), product(range(ep), range(etp))
        ):
            place = RankPlace(
                tensor_size=tp,
                tensor_rank=tensor_rank,
                expert_size=ep,
                expert_rank=expert_rank,
                expert_tensor_size=etp,
                expert_tensor_rank=expert_tensor_rank,
            )
            table = chunk_geometry(shape, stage, place, fused_norms=te, grouped_experts=te)
            found += [(place, entry) for entry in table]
    return found


@pytest.mark.parametrize("te", [False, True], ids=["local", "te"])
@pytest.mark.parametrize("shape", [TINY, NO_Q_LORA], ids=["mtp", "no q_lora"])
@pytest.mark.parametrize(
    ("tp", "ep", "etp", "pp", "vpp"),
    [
        layout
        for layout in product((1, 2, 4), (1, 2, 8), (1, 2, 4), (1, 2), (1, 2))
        if layout[3] > 1 or layout[4] == 1
    ],
)
def test_every_element_is_held_the_same_number_of_times(
    shape: ModelShape, tp: int, ep: int, etp: int, pp: int, vpp: int, te: bool
) -> None:
    held: dict[str, Counter[tuple[int, int]]] = {}
    for _, entry in geometry_of_all_ranks(shape, tp, ep, etp, pp, vpp, te):
        for piece in entry.pieces:
            elements = product(range(*piece.rows), range(*piece.cols))
            held.setdefault(piece.key, Counter()).update(elements)
    shapes = canonical_shapes(shape)
    assert held.keys() == shapes.keys()
    for key, (rows, cols) in shapes.items():
        assert len(held[key]) == rows * cols, f"{key} is not held whole"
        assert len(set(held[key].values())) == 1, f"{key} is held unevenly"


@pytest.mark.parametrize("te", [False, True], ids=["local", "te"])
def test_pieces_tile_their_parameter(te: bool) -> None:
    for _, entry in geometry_of_all_ranks(TINY, 2, 2, 2, 2, 2, te):
        covered: Counter[tuple[int, int]] = Counter()
        for piece in entry.pieces:
            size = piece.rows[1] - piece.rows[0], piece.cols[1] - piece.cols[0]
            local = (
                piece.local_rows[1] - piece.local_rows[0],
                piece.local_cols[1] - piece.local_cols[0],
            )
            assert size == local, entry.name
            covered.update(product(range(*piece.local_rows), range(*piece.local_cols)))
        assert set(covered) == set(product(range(entry.shape[0]), range(entry.shape[1])))
        assert set(covered.values()) == {1}, entry.name


def test_what_differs_between_tensor_ranks_is_marked() -> None:
    table = geometry_of_all_ranks(TINY, 2, 2, 2, 1, 1, False)
    held: dict[tuple[str, int, int], dict[int, tuple[Piece, ...]]] = {}
    for place, entry in table:
        rank = place.expert_tensor_rank if entry.is_expert else place.tensor_rank
        other = place.tensor_rank if entry.is_expert else place.expert_tensor_rank
        held.setdefault((entry.name, place.expert_rank, other), {})[rank] = entry.pieces
    marked = {entry.name: entry.is_tensor_sharded for _, entry in table}
    for (name, *_), by_rank in held.items():
        assert (by_rank[0] != by_rank[1]) == marked[name], name


@pytest.mark.parametrize("preset", ["kimi-k2", "moonlight-16b-a3b", "k2-tiny"])
def test_canonical_matrices_hold_every_parameter(preset: str) -> None:
    from k2_megatron.model.shape import model_shape

    model = model_from_preset(preset)
    elements = sum(rows * cols for rows, cols in canonical_shapes(model_shape(model)).values())
    selection_biases = model.num_experts * (model.num_layers - model.first_k_dense_replace)
    assert elements + selection_biases == count_parameters(model).total


def test_k2_on_256_ranks_holds_what_the_report_says() -> None:
    """A middle stage holds 4.23 B expert and 0.59 B other parameters at PP16 EP16."""
    from k2_megatron.model.shape import model_shape

    shape = model_shape(model_from_preset("kimi-k2"))
    layout = even_layout(num_layers=61, pipeline_size=16)
    place = RankPlace(expert_size=16, expert_rank=15)
    table = chunk_geometry(shape, layout.stages[7], place, fused_norms=True, grouped_experts=True)
    size = {True: 0, False: 0}
    for entry in table:
        size[entry.is_expert] += sum(area(piece) for piece in entry.pieces)
    assert size[True] == 4 * 24 * 3 * 7168 * 2048
    assert size[False] == pytest.approx(0.59e9, rel=0.01)
    assert {piece.key.split(".")[3] for e in table if e.is_expert for piece in e.pieces} == {
        str(expert) for expert in range(360, 384)
    }
