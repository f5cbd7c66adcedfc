# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""State of megatron-core's DistributedOptimizer in host memory, its step unchanged.

megatron-core's own offload (HybridDeviceOptimizer) computes on the CPU what it moves there, which
is slow and another rounding. Here the same inner optimizer steps on the device, on pieces that pass
through it (`offload/state.py`). Its masters keep their place in its groups, so that norm and
clipping see their gradients as before, but have no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from k2_megatron.offload.sizes import on_host, shard_tensors, tensors_on_host
from k2_megatron.offload.state import HostState
from k2_megatron.parallel.flat_shards import FlatShard

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class OwnedMaster:
    """The owned part of one parameter in a DistributedOptimizer.

    Attributes:
        flat: it in the bucket; it has elements.
        inner: the DistributedOptimizer.
        group: index of its group there.
        master: fp32 [n]; in fp32 runs a view of the weights.
    """

    flat: FlatShard
    inner: Any
    group: int
    master: torch.Tensor

    @property
    def is_copy(self) -> bool:
        """The master is not the weights themselves."""
        return self.flat.weights.dtype != torch.float32


class AdamOnHost:
    """The shards whose state is in host memory; there may be none.

    Attributes:
        memory: where it is.
    """

    def __init__(self, masters: Sequence[OwnedMaster], fraction: float) -> None:
        """Move the state of some shards, and let the inner optimizers step on it.

        Args:
            masters: of this rank, in buffer order.
            fraction: of the state by bytes.
        """
        sizes = [
            shard_tensors(one.master.numel(), master=one.is_copy, momentum=None) for one in masters
        ]
        away = on_host(sizes, fraction)
        moved = [one for one, is_away in zip(masters, away, strict=True) if is_away]
        device = moved[0].flat.gradient.device if moved else torch.device("cpu")
        self.memory = HostState(tensors_on_host(sizes, away), device)
        self._moved = {id(one.master): one for one in moved}
        self._values = {id(one.master): self._move(one) for one in moved}
        for number, inner in enumerate({id(one.inner): one.inner for one in moved}.values()):
            inner.optimizer.step = partial(self._step, inner, f"adam {number}")

    def master(self, master: torch.Tensor) -> torch.Tensor:
        """Where the values of a master of the inner optimizer are."""
        return self._values.get(id(master), master)

    def give_gradients(self) -> None:
        """Let masters without memory have their gradients, as `prepare_grads` does for others."""
        for one in self._moved.values():
            one.master.grad = one.flat.gradient

    def zero_grad(self) -> None:
        """Forget them, as the DistributedOptimizer's `zero_grad` does for others."""
        for one in self._moved.values():
            one.master.grad = one.flat.parameter.grad = None

    def _move(self, one: OwnedMaster) -> torch.Tensor:
        """Put the state of a shard on the host; its master there, if it is moved too."""
        master, count = one.master, one.master.numel()
        if one.is_copy:
            values = self.memory.place(count, torch.float32).copy_(master)
            master.untyped_storage().resize_(0)
            _hide(one)
        state = one.inner.optimizer.state[master]
        assert not state, "AdamW has begun before its state was moved"
        state |= {name: self.memory.place(count, torch.float32) for name in MOMENTS}
        if counts_per_shard(one.inner.optimizer):
            state["step"] = torch.zeros((), dtype=torch.float32)
        return values if one.is_copy else master

    def _step(self, inner: Any, name: str) -> None:
        """In place of the inner optimizer's step: those on the device, then piece by piece."""
        groups = inner.optimizer.param_groups
        params = [group["params"] for group in groups]
        counts = [group.get("step") for group in groups]
        try:
            for group, every in zip(groups, params, strict=True):
                group["params"] = [one for one in every if id(one) not in self._moved]
            _inner_step(inner.optimizer)
            for group in groups:
                group["params"] = []
            with self.memory.sweep(name):
                for one in self._moved.values():
                    if one.inner is inner:
                        self._step_shard(one, groups[one.group], counts[one.group])
        finally:
            for group, every in zip(groups, params, strict=True):
                group["params"] = every

    def _step_shard(self, one: OwnedMaster, group: dict[str, Any], count: int | None) -> None:
        """One shard; `count`: the group's steps before this one, where it counts them."""
        optimizer = one.inner.optimizer
        state = optimizer.state[one.master]
        tensors = (self.master(one.master), *(state[name] for name in MOMENTS))
        views = [tensor.view(1, -1) for tensor in tensors]
        for _, cols, (master, exp_avg, exp_avg_sq) in self.memory.visit(*views):
            master.grad = one.flat.gradient[None, cols]
            group["params"] = [master]
            group |= {} if count is None else {"step": count}
            if count is None and not counts_per_shard(optimizer):
                group.pop("step", None)
            optimizer.state[master] = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            if "step" in state:
                optimizer.state[master]["step"] = state["step"].clone()
            _inner_step(optimizer)
            del optimizer.state[master]
            group["params"], master.grad = [], None
            if one.is_copy:
                one.flat.weights[None, cols].copy_(master)
        if "step" in state:
            state["step"] += 1


def counts_per_shard(torch_optimizer: Any) -> bool:
    """Whether a step count is kept for each shard, as PyTorch's AdamW does."""
    return isinstance(torch_optimizer, torch.optim.Adam)


def _inner_step(optimizer: Any) -> None:
    """The step of its class, which the instance's own stands before."""
    type(optimizer).step(optimizer)


def _hide(one: OwnedMaster) -> None:
    """Take a master out of the lists by which DistributedOptimizer copies gradients and weights.

    distrib_optimizer.py:2401 and 2455 go through these lists; norm and clipping go through the
    inner optimizer's groups.
    """
    inner = one.inner
    masters = inner.shard_fp32_from_float16_groups[one.group]
    place = next(index for index, other in enumerate(masters) if other is one.master)
    lists = (
        inner.model_float16_groups,
        inner.shard_float16_groups,
        inner.shard_fp32_from_float16_groups,
    )
    for groups in lists:
        del groups[one.group][place]
