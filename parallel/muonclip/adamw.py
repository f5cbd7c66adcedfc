# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""AdamW inside MuonClip: PyTorch's own, over the fp32 shards of embedding, head and norm gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.adamw import adamw

from k2_megatron.offload.state import HostState
from k2_megatron.parallel.muonclip.shards import OwnedShard


class ShardedAdamW:
    """torch.optim.AdamW whose parameters are this rank's masters."""

    def __init__(
        self,
        shards: Sequence[OwnedShard],
        host: HostState,
        *,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Take charge of the shards that have elements; there may be none.

        Args:
            shards: of all parameters that take AdamW.
            host: where the state of some of them is.
            betas, eps: of AdamW.
        """
        self._shards = [shard for shard in shards if shard.master.numel()]
        self._host = host
        masters = [shard.master for shard in self._shards]
        is_cuda = any(shard.gradient.is_cuda for shard in self._shards)
        self._optimizer = (
            torch.optim.AdamW(masters, lr=0.0, betas=betas, eps=eps, fused=is_cuda)
            if masters
            else None
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The one group, if this rank has any of its parameters."""
        return [] if self._optimizer is None else self._optimizer.param_groups

    def step(self, factor: float) -> None:
        """Update the masters and round them into the parameters; in a sweep of the host memory.

        Args:
            factor: of the gradients, which are scaled in place.
        """
        if self._optimizer is None:
            return
        here = [shard for shard in self._shards if not shard.on_host]
        for shard in here:
            shard.master.grad = shard.gradient
        if factor != 1.0:
            torch._foreach_mul_([shard.gradient for shard in self._shards], factor)
        self._optimizer.step()  # passes by those without a gradient
        for shard in here:
            shard.master.grad = None
            shard.round_master()
        for shard in self._shards:
            if shard.on_host:
                self._step_from_host(shard, self._optimizer.param_groups[0])

    def _step_from_host(self, shard: OwnedShard, group: dict[str, Any]) -> None:
        """The same step of a shard piece by piece, by the function that the optimizer calls."""
        state = self._state(shard)
        tensors = (shard.master, state["exp_avg"], state["exp_avg_sq"])
        views = [tensor.view(1, -1) for tensor in tensors]
        for _, cols, (master, exp_avg, exp_avg_sq) in self._host.visit(*views):
            adamw(
                [master],
                [shard.gradient[None, cols]],
                [exp_avg],
                [exp_avg_sq],
                [],
                [state["step"].clone()],  # which it advances
                foreach=group["foreach"],
                fused=group["fused"],
                amsgrad=group["amsgrad"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )
            shard.round_columns(cols, master)
        state["step"] += 1

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
            device = shard.gradient.device if fused else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            moments = shard.moments or (
                torch.zeros_like(shard.master.detach()),
                torch.zeros_like(shard.master.detach()),
            )
            state["exp_avg"], state["exp_avg_sq"] = moments
        return state
