# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Rules, fragments and owners of MuonClip's matrices, in integers; and what K2's layout costs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from k2_megatron.config.presets import model_from_preset
from k2_megatron.errors import UserError
from k2_megatron.model.shape import model_shape
from k2_megatron.parallel.buckets import buffers, cut_into_buckets, shares
from k2_megatron.parallel.canonical import canonical_shapes
from k2_megatron.parallel.geometry import ParameterGeometry, Piece, RankPlace, chunk_geometry
from k2_megatron.parallel.layout import Stage
from k2_megatron.parallel.muonclip.fragments import Fragment, fragments
from k2_megatron.parallel.muonclip.placement import Holding, newton_schulz_cost, place
from k2_megatron.parallel.muonclip.rules import Assignment, LogicalMatrix, MuonRules, assign
from k2_megatron.parallel.rectangles import area, row_rectangles

K2 = model_shape(model_from_preset("kimi-k2"))


@pytest.mark.parametrize("width", [1, 3, 7])
def test_rectangles_tile_an_interval_in_order(width: int) -> None:
    matrix = torch.arange(5 * width).view(5, width)
    for begin in range(5 * width):
        for end in range(begin, 5 * width + 1):
            cut = list(row_rectangles(begin, end, width))
            parts = [matrix[slice(*rows), slice(*cols)].flatten() for rows, cols in cut]
            assert len(cut) <= 3
            assert torch.cat([matrix.flatten()[:0], *parts]).tolist() == list(range(begin, end))


def test_k2_table() -> None:
    """The factors of every kind of K2's matrices (0.2 sqrt(max(rows, columns)))."""
    assignment = assign(canonical_shapes(K2), K2.num_heads, MuonRules())
    factors = {
        matrix.name.removeprefix("layers.1.").removeprefix("attention."): round(matrix.scale, 2)
        for matrix in assignment.matrices.values()
        if matrix.name.startswith("layers.1.") and ".experts." not in matrix.name
    }
    assert factors == {
        "q_down": 16.93,
        "q_up.nope": 18.10,
        "q_up.rope": 12.80,
        "kv_down.latent": 16.93,
        "kv_down.rope": 16.93,
        "kv_up.k": 18.10,
        "kv_up.v": 18.10,
        "out": 18.10,
        "router": 16.93,
        "shared_expert.gate": 16.93,
        "shared_expert.up": 16.93,
        "shared_expert.down": 16.93,
    }
    assert sum(matrix.kind == "experts" for matrix in assignment.matrices.values()) == 60 * 384 * 3
    assert set(assignment.adamw.values()) == {"embedding", "head", "norm gain"}


def test_joined_blocks_lie_under_each_other() -> None:
    rules = MuonRules(split_gate_up=False, split_kv_down=False)
    assignment = assign(canonical_shapes(K2), K2.num_heads, rules)
    joined = assignment.matrices["layers.1.shared_expert.gate_up"]
    assert (joined.rows, joined.cols) == (4096, 7168)
    assert assignment.blocks["layers.1.shared_expert.up"][0].row == 2048
    kv_down = assignment.matrices["layers.1.attention.kv_down"]
    assert (kv_down.rows, round(kv_down.scale, 2)) == (576, 16.93)


def test_a_parameter_without_a_rule_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"layers\.0\.attention\.gate_bias \[8, 1\]"):
        assign({"layers.0.attention.gate_bias": (8, 1)}, 4, MuonRules())


def test_router_may_take_adamw() -> None:
    assignment = assign({"layers.3.router": (384, 7168)}, 64, MuonRules(router=False))
    assert assignment.adamw == {"layers.3.router": "router"} and not assignment.matrices


def _parameter(rows: int, cols: int) -> ParameterGeometry:
    piece = Piece(
        key="layers.0.router",
        rows=(0, rows),
        cols=(0, cols),
        local_rows=(0, rows),
        local_cols=(0, cols),
    )
    return ParameterGeometry(name="w", shape=(rows, cols), pieces=(piece,))


def test_fragments_of_all_shards_tile_the_matrix() -> None:
    assignment = assign({"layers.0.router": (7, 5)}, 1, MuonRules())
    cuts = [0, 3, 4, 18, 35]
    parts = [
        part
        for begin, end in pairwise(cuts)
        for part in fragments(_parameter(7, 5), begin, end, assignment)
    ]
    assert [(part.begin, part.length) for part in parts] == [(0, 3), (3, 1), (4, 14), (18, 17)]
    assert sum(area(rectangle) for part in parts for rectangle in part.rectangles) == 35


def test_heads_are_one_fragment_and_a_cut_head_one_of_its_own() -> None:
    """Four heads of two content rows and a rotary row of width 2; 5 elements are another rank's."""
    keys = {"layers.0.attention.q_up.nope": 2, "layers.0.attention.q_up.rope": 1}
    pieces, row = [], 0
    for head in range(4):
        for key, height in keys.items():
            rows = (head * height, (head + 1) * height)
            local = (row, row + height)
            piece = Piece(key=key, rows=rows, cols=(0, 2), local_rows=local, local_cols=(0, 2))
            pieces.append(piece)
            row += height
    entry = ParameterGeometry(name="q", shape=(12, 2), pieces=tuple(pieces))
    assignment = assign({key: (4 * height, 2) for key, height in keys.items()}, 4, MuonRules())
    found = [
        (one.matrix[-4:], one.begin, one.length, one.count, one.step, one.rectangles)
        for one in fragments(entry, 1, 20, assignment)
    ]
    assert found == [
        ("nope", 1, 3, 1, 0, (((0, 1), (1, 2)), ((1, 2), (0, 2)))),
        ("rope", 4, 2, 3, 6, (((0, 3), (0, 2)),)),
        ("nope", 6, 4, 2, 6, (((2, 6), (0, 2)),)),
        ("nope", 18, 2, 1, 0, (((6, 7), (0, 2)),)),
    ]


def _holding(*cut: Fragment, fixed: float = 0.0, tensor_rank: int = 0) -> Holding:
    return Holding(
        tensor_rank=tensor_rank,
        expert_tensor_rank=0,
        fixed_cost=fixed,
        fixed_matrices=int(fixed > 0),
        cut=cut,
    )


def _whole(name: str, rows: tuple[int, int], cols: int) -> Fragment:
    return Fragment(
        matrix=name,
        begin=rows[0] * cols,
        length=(rows[1] - rows[0]) * cols,
        rectangles=((rows, (0, cols)),),
    )


def _matrix(name: str, rows: int, cols: int) -> LogicalMatrix:
    return LogicalMatrix(name=name, kind="out", rows=rows, cols=cols, scale=1.0)


def test_the_idle_rank_gets_the_work_and_the_bytes_are_counted() -> None:
    matrices = {"a": _matrix("a", 4, 4)}
    holdings = [_holding(_whole("a", (0, 3), 4), fixed=1e6), _holding(_whole("a", (3, 4), 4))]
    placement = place(holdings, matrices, round_elements=100)
    ((one,),) = placement.rounds
    assert one.owner == 1
    assert placement.data_elements == 2 * 3 * 4  # three rows of four, there and back
    assert placement.num_matrices == 2
    assert placement.loads == (1e6, newton_schulz_cost(matrices["a"]))


def test_a_copy_is_a_holder_and_no_source() -> None:
    matrices = {"a": _matrix("a", 2, 4)}
    holdings = [_holding(_whole("a", (0, 2), 4), tensor_rank=rank) for rank in range(2)]
    placement = place(holdings, matrices, round_elements=100)
    ((one,),) = placement.rounds
    assert (one.sources, one.holders) == (((0, 0),), ((0, 0), (1, 0)))
    assert (placement.data_elements, placement.tensor_elements) == (0, 8)


def test_a_hole_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="parts of a have 4 of 8 elements"):
        place([_holding(_whole("a", (0, 1), 4))], {"a": _matrix("a", 2, 4)}, round_elements=100)


def k2_stage_holdings(data_size: int, expert_data_size: int) -> tuple[list[Holding], Assignment]:
    """A stage of four MoE layers of K2 at EP16, TP1, its flat buffers cut as DDP cuts them."""
    assignment = assign(canonical_shapes(K2), K2.num_heads, MuonRules())
    stage = Stage(layers=(1, 2, 3, 4))
    holdings = []
    for rank in range(data_size):
        place_of_rank = RankPlace(expert_size=16, expert_rank=rank % 16)
        entries = chunk_geometry(K2, stage, place_of_rank, fused_norms=True, grouped_experts=True)
        found: list[Fragment] = []
        for buffer, ways, index in zip(
            buffers(entries, expert_parallel=True),
            (data_size, expert_data_size),
            (rank, rank // 16),
            strict=True,
        ):
            (bucket,) = cut_into_buckets(buffer, ways)
            for share in shares(bucket, ways, index):
                if assignment.uses_muon(share.entry.pieces[0].key):
                    found += fragments(share.entry, share.begin, share.end, assignment)
        sizes: dict[str, int] = {}
        for part in found:
            sizes[part.matrix] = sizes.get(part.matrix, 0) + part.size
        whole = {
            name
            for name, size in sizes.items()
            if size == assignment.matrices[name].rows * assignment.matrices[name].cols
        }
        holdings.append(
            Holding(
                tensor_rank=0,
                expert_tensor_rank=0,
                fixed_cost=sum(newton_schulz_cost(assignment.matrices[name]) for name in whole),
                fixed_matrices=len(whole),
                cut=tuple(part for part in found if part.matrix not in whole),
            )
        )
    return holdings, assignment


# The table of docs/muonclip.md: ranks a stage, ranks that share an expert, bytes beside AdamW's,
# longest queue over the mean.
K2_STAGES = [
    (16, 1, 1.0099, 1.04),
    (32, 2, 1.0017, 1.10),
    (64, 4, 1.0009, 1.22),
    (128, 8, 1.0005, 1.46),
]


@pytest.mark.parametrize(("data_size", "expert_data_size", "ratio", "balance"), K2_STAGES)
def test_k2_layout_costs_little_more_than_zero1_adamw(
    data_size: int, expert_data_size: int, ratio: float, balance: float
) -> None:
    """32, 64, 128 and 256 nodes of 8 GPUs at PP16 x EP16.

    ZeRO-1 AdamW moves 4 bytes a gradient element in its reduce-scatter and 2 a weight in its
    all-gather, (D - 1) of D shards each, summed over the D ranks.
    """
    holdings, assignment = k2_stage_holdings(data_size, expert_data_size)
    placement = place(holdings, assignment.matrices, round_elements=10**9)
    names = [name for name in assignment.matrices if name.split(".")[1] in {"1", "2", "3", "4"}]
    assert placement.num_matrices == len(names)
    experts = sum(
        assignment.matrices[name].rows * assignment.matrices[name].cols
        for name in names
        if ".experts." in name
    )
    dense = sum(
        assignment.matrices[name].rows * assignment.matrices[name].cols
        for name in names
        if ".experts." not in name
    )
    adamw = 6 * ((data_size - 1) * dense + (expert_data_size - 1) * experts)
    muon = 2 * placement.data_elements
    assert muon <= 4 * placement.cut_elements  # there and back in bf16, less what stays
    assert 1 + muon / adamw == pytest.approx(ratio, abs=1e-4)
    assert placement.balance == pytest.approx(balance, abs=0.01)
    # No queue is longer than the mean and one matrix, which cannot be shared out.
    largest = newton_schulz_cost(assignment.matrices["layers.1.attention.out"])
    assert max(placement.loads) <= sum(placement.loads) / data_size + largest


def test_ownership_is_balanced_and_deterministic() -> None:
    holdings, assignment = k2_stage_holdings(32, 2)
    first = place(holdings, assignment.matrices, round_elements=10**8)
    again = place(holdings, assignment.matrices, round_elements=10**8)
    assert first == again
    for chosen in first.rounds:
        by_owner: dict[int, int] = {}
        for one in chosen:
            size = one.matrix.rows * one.matrix.cols
            by_owner[one.owner] = by_owner.get(one.owner, 0) + size
            assert by_owner[one.owner] <= max(10**8, size)
