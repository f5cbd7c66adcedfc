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
            shard.round_master()

    def moments(self, shard: OwnedShard) -> dict[str, torch.Tensor]:
        """Both moments of one of its shards; zeros where they are not begun."""
        state = self._state(shard)
        return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}

    def num_updates(self) -> int | None:
        """Updates made; None where this rank has none of its parameters."""
        counts = {int(self._state(shard)["step"]) for shard in self._shards}
        assert len(counts) <= 1, f"shards have counted different numbers of steps: {counts}"
        return counts.pop() if counts else None

    def set_num_updates(self, num_updates: int) -> None:
        """Restore the count; each shard has a tensor of its own, which AdamW advances."""
        for shard in self._shards:
            state = self._state(shard)
            state["step"] = torch.full_like(state["step"], num_updates)

    def _state(self, shard: OwnedShard) -> dict[str, torch.Tensor]:
        """What AdamW keeps of a shard, begun as AdamW itself does where it is not."""
        assert self._optimizer is not None
        state: dict[str, torch.Tensor] = self._optimizer.state[shard.master]
        if not state:
            fused = self._optimizer.defaults["fused"]
            device = shard.master.device if fused else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(shard.master.detach())
            state["exp_avg_sq"] = torch.zeros_like(shard.master.detach())
        return state
