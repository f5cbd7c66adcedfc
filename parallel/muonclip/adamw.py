# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""AdamW inside MuonClip: PyTorch's own, over the fp32 shards of embedding, head and norm gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from k2_megatron.parallel.muonclip.shards import OwnedShard


class ShardedAdamW:
    """torch.optim.AdamW whose parameters are this rank's masters."""

    def __init__(
        self, shards: Sequence[OwnedShard], *, betas: tuple[float, float], eps: float
    ) -> None:
        """Take charge of the shards that have elements; there may be none."""
        self._shards = [shard for shard in shards if shard.master.numel()]
        masters = [shard.master for shard in self._shards]
        self._optimizer = (
            torch.optim.AdamW(masters, lr=0.0, betas=betas, eps=eps, fused=masters[0].is_cuda)
            if masters
            else None
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The one group, if this rank has any of its parameters."""
        return [] if self._optimizer is None else self._optimizer.param_groups

    def step(self, factor: float) -> None:
        """Update the masters and round them into the parameters.

        Args:
            factor: of the gradients, which are scaled in place.
        """
        if self._optimizer is None:
            return
        for shard in self._shards:
            shard.master.grad = shard.gradient
        if factor != 1.0:
            torch._foreach_mul_([shard.gradient for shard in self._shards], factor)
        self._optimizer.step()
        for shard in self._shards:
            shard.master.grad = None
            if shard.parameter_view is not None:
                shard.parameter_view.copy_(shard.master)

    def state(self) -> list[dict[str, Any]]:
        """Moments and step count of each shard."""
        if self._optimizer is None:
            return []
        return [dict(self._optimizer.state[shard.master]) for shard in self._shards]

    def load(self, saved: Sequence[dict[str, Any]]) -> None:
        """Restore what `state` gave."""
        for shard, state in zip(self._shards, saved, strict=True):
            assert self._optimizer is not None
            self._optimizer.state[shard.master] = {
                name: value.to(shard.master.device if value.dim() else value.device, copy=True)
                for name, value in state.items()
            }
