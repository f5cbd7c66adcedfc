# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The largest attention logit of every head over a training step, for QK-Clip.

A logit is what softmax takes: query times key times the softmax scale, of visible pairs alone. Each
core attention of this rank raises a row of one buffer in its training forwards; what it sees are
its own heads, micro-batches and, with data parallelism, sequences. The step's maxima are known once
every rank's are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.parallel.topology import Topology


@dataclass(frozen=True, kw_only=True)
class RecordedAttention:
    """A core attention of this rank. index: global 0-based layer; MTP layers follow the decoder's.

    core_attention: raises its attribute `max_logits`, a tensor [local heads] or None, in place.
    """

    index: int
    core_attention: Any


class MaxLogits:
    """Collects the largest logits of a step from this rank's attentions, and over all ranks."""

    def __init__(
        self,
        attentions: Sequence[RecordedAttention],
        *,
        num_layers: int,
        num_heads: int,
        topology: Topology,
        device: torch.device,
    ) -> None:
        """Give each attention its row of the buffer.

        Args:
            attentions: this rank's; none where a pipeline stage holds no layer.
            num_layers: of the whole model, MTP layers included.
            num_heads: of a layer, over all tensor ranks, which hold equal shares in order.
            topology: the tensor rank decides which heads are this rank's.
            device: of the buffer.
        """
        self._shape = (num_layers, num_heads)
        local_heads = num_heads // topology.tp.size
        first = topology.tp.rank * local_heads
        self._columns = slice(first, first + local_heads)
        indices = [attention.index for attention in attentions]
        self._layers = torch.tensor(indices, dtype=torch.long, device=device)
        self._maxima = torch.empty(len(indices), local_heads, dtype=torch.float32, device=device)
        self.reset()
        for attention, row in zip(attentions, self._maxima, strict=True):
            attention.core_attention.max_logits = row

    def reset(self) -> None:
        """Forget what was recorded; call before each training step."""
        self._maxima.fill_(-torch.inf)

    def reduce(self) -> torch.Tensor:
        """The maxima of all layers and heads since `reset`. Collective over all ranks.

        The host does not wait for the device.

        Returns:
            fp32, [layers with MTP layers last, heads], the same on all ranks; inf where a logit
            was NaN, which a reduction may lose; -inf where nothing was recorded.
        """
        own = torch.where(self._maxima.isnan(), torch.inf, self._maxima)
        whole = own.new_full(self._shape, -torch.inf)
        whole[:, self._columns].index_copy_(0, self._layers, own)
        dist.all_reduce(whole, op=dist.ReduceOp.MAX)
        return whole
