# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Train with one mend or refusal taken out, to see that the engine's error is still there.

Each function is named for what it undoes. Ranks are forked, so nothing has to be put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import random

from k2_megatron.config import loader
from k2_megatron.model import build, spec, transformer
from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.platform.cpu import CpuPlatform
from tests.distributed.jobs import train


def train_without(mend: str, **kwargs: Any) -> dict[str, Any]:
    """tests.distributed.jobs.train with one mend undone."""
    UNDO[mend]()
    return train(**kwargs)


def _whole_down_projections() -> None:
    complete = spec._complete_local_layer

    def leave_them_cut(layer: Any) -> None:
        attention = layer.self_attention.submodules
        before = attention.linear_q_down_proj, attention.linear_kv_down_proj
        complete(layer)
        attention.linear_q_down_proj, attention.linear_kv_down_proj = before

    def with_cut_ones(*args: Any, **kwargs: Any) -> tuple[ParameterGeometry, ...]:
        place = args[2]
        return tuple(
            _rows_of_rank(entry, place.tensor_rank, place.tensor_size)
            if "down_proj" in entry.name
            else entry
            for entry in geometry(*args, **kwargs)
        )

    geometry = build.chunk_geometry
    spec._complete_local_layer = leave_them_cut
    build.chunk_geometry = with_cut_ones


def _rows_of_rank(entry: ParameterGeometry, rank: int, size: int) -> ParameterGeometry:
    """One rank's share of the rows of a parameter that the geometry table holds whole."""
    num_rows = entry.shape[0] // size
    pieces = []
    for piece in entry.pieces:
        begin = max(piece.local_rows[0], rank * num_rows)
        end = min(piece.local_rows[1], (rank + 1) * num_rows)
        if begin < end:
            offset = piece.rows[0] - piece.local_rows[0]
            local = (begin - rank * num_rows, end - rank * num_rows)
            pieces.append(replace(piece, rows=(begin + offset, end + offset), local_rows=local))
    return replace(entry, shape=(num_rows, entry.shape[1]), pieces=tuple(pieces))


def _unbatched_sends_when_interleaved() -> None:
    fields = transformer._parallel_fields

    def batched(*args: Any) -> dict[str, Any]:
        return {**fields(*args), "batch_p2p_comm": True, "overlap_p2p_comm": False}

    transformer._parallel_fields = batched


def _kept_pipeline_outputs() -> None:
    options = CpuPlatform.transformer_options

    def freed(self: CpuPlatform) -> dict[str, Any]:
        return {**options(self), "deallocate_pipeline_outputs": True}

    CpuPlatform.transformer_options = freed  # type: ignore[method-assign]


def _marks_of_distinct_parameters() -> None:
    mark = build._mark_distinct_parameters

    def only_cut_ones(module: Any, entries: Any, *, expert_parallel: bool) -> None:
        mark(module, entries, expert_parallel=False)

    build._mark_distinct_parameters = only_cut_ones


def _router_state_in_fp32() -> None:
    build._keep_router_state_in_fp32 = lambda modules: None


def _output_discarding_checkpoint() -> None:
    tensor_parallel.CheckpointWithoutOutput = random.CheckpointWithoutOutput


def _validation() -> None:
    loader.check = lambda *args: []


UNDO: dict[str, Callable[[], None]] = {
    "whole down-projections": _whole_down_projections,
    "unbatched sends when interleaved": _unbatched_sends_when_interleaved,
    "kept pipeline outputs": _kept_pipeline_outputs,
    "marks of distinct parameters": _marks_of_distinct_parameters,
    "router state in fp32": _router_state_in_fp32,
    "output-discarding checkpoint": _output_discarding_checkpoint,
    "validation": _validation,
}
