# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The word embedding's gradient, written where it is summed.

PyTorch makes a gradient of the whole table for every micro-batch, zeros but for the rows of some
thousand tokens, and DistributedDataParallel adds all of it to the fp32 sum: 14 GB of traffic for
K2's 163840 rows, zeroed, read and added. Here the rows are added, in fp32, and nothing else is
touched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor


class _Lookup(torch.autograd.Function):
    """Rows of a table; backward adds to the table's `main_grad`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(ids)
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        table, rows = ctx.table, gradients[0].flatten(0, -2)
        total: Tensor = table.main_grad
        ids, rows = ids.flatten(), rows.to(total.dtype)
        # On the other device either adds in whatever order; a run has to repeat its bits.
        if total.is_cuda:
            total.index_put_((ids,), rows, accumulate=True)
        else:
            total.index_add_(0, ids, rows)
        table.grad_added_to_main_grad = True
        # DistributedDataParallel counts gradients that come. What is in this one it adds only where
        # the engine says so, of tables that MTP shares (distributed_data_parallel.py:438).
        added = getattr(table, "zero_out_wgrad", False)
        return (torch.zeros_like if added else torch.empty_like)(table), None


class MainGradEmbedding(VocabParallelEmbedding):  # type: ignore[misc]
    """megatron-core's embedding, layers.py:268, with the gradient above."""

    def forward(self, input_: Tensor) -> Tensor:
        """Look tokens up.

        Args:
            input_: [b, s], int64.

        Returns:
            [b, s, h], or this rank's part of the sequence [s / tp, b, h] where the engine wants it.
        """
        cut = self.tp_group.size() > 1
        ids = input_ - self.vocab_start_index if cut else input_
        elsewhere = (ids < 0) | (ids >= self.num_embeddings_per_partition) if cut else None
        if elsewhere is not None:
            ids = ids.masked_fill(elsewhere, 0)
        rows: Tensor = _Lookup.apply(self.weight, ids)  # type: ignore[no-untyped-call]
        if elsewhere is not None:
            rows = rows.masked_fill(elsewhere[..., None], 0.0)
        if self.reduce_scatter_embeddings:
            along = rows.transpose(0, 1).contiguous()
            return reduce_scatter_to_sequence_parallel_region(along, group=self.tp_group)  # type: ignore[no-any-return]
        return reduce_from_tensor_model_parallel_region(rows, group=self.tp_group)  # type: ignore[no-any-return]


def add_rows_to_main_grad(embedding: Any) -> None:
    """Let a language model's embedding, built by the engine under its own class, do so."""
    assert type(embedding.word_embeddings) is VocabParallelEmbedding
    embedding.word_embeddings.__class__ = MainGradEmbedding
