# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainer asks of an optimizer, and AdamW as megatron-core's ZeRO-1 optimizer gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from k2_megatron.offload.state import HostState
from k2_megatron.parallel.adam_on_host import MOMENTS, AdamOnHost, OwnedMaster, counts_per_shard
from k2_megatron.parallel.flat_shards import FlatShard, flat_shards


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What an optimizer step did.

    Attributes:
        grad_norm: global norm of the gradient before clipping, the same on all ranks.
        skipped: the gradient was not finite and nothing was changed.
        metrics: further values of the step by TensorBoard tag, the same on all ranks but for times.
    """

    grad_norm: float
    skipped: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ShardState:
    """What an optimizer keeps of the part of one parameter that this rank owns.

    Attributes:
        parameter: the model parameter.
        begin: first owned element of the flattened parameter.
        tensors: [n] by kind, on the device or on the host; `weight` is the fp32 master.
    """

    parameter: torch.nn.Parameter
    begin: int
    tensors: dict[str, torch.Tensor]


class Optimizer(Protocol):
    """A ZeRO-1 optimizer over megatron-core's DistributedDataParallel buffers."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups whose `lr` and `weight_decay` the schedule sets before each step."""

    @property
    def host(self) -> HostState:
        """The part of the state in host memory."""

    def describe(self) -> str:
        """The rule as text for the log of a run."""

    def zero_grad(self) -> None:
        """Forget what the last step left; called before the first forward."""

    def step(self) -> StepResult:
        """Clip, update this rank's shards and gather the parameters. Collective."""

    def kinds(self, key: str) -> tuple[str, ...]:
        """What is kept of a canonical matrix: `weight` and the names of its moments."""

    def shard_states(self) -> list[ShardState]:
        """Everything of this rank that a later run needs, but for the number of steps.

        The tensors are those of the optimizer: who loads fills them and calls `loaded`.
        """

    def num_updates(self) -> int | None:
        """Updates that AdamW has made, for its bias correction; None where this rank has none."""

    def loaded(self, num_updates: int) -> None:
        """Take what `shard_states` was filled with: round it into the parameters of this rank.

        The caller gathers the parameters.
        """


class AdamW:
    """AdamW through megatron-core's DistributedOptimizer."""

    def __init__(
        self,
        chunks: Sequence[DistributedDataParallel],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        clip_grad: float,
        dtype: torch.dtype,
        host_fraction: float = 0.0,
    ) -> None:
        """Shard the state over data-parallel ranks. Collective.

        Args:
            chunks: this rank's model chunks.
            lr: initial learning rate.
            weight_decay: decoupled decay, of norm gains too, as Moonlight found necessary
                (arXiv 2502.16982); megatron-core would leave them out by itself.
            betas: decay of the two moments.
            eps: added to the root of the second moment.
            clip_grad: largest global gradient norm, 0 for no clipping.
            dtype: dtype of the parameters; bf16 keeps fp32 master weights.
            host_fraction: of the state, by bytes, in host memory.
        """
        overlap = chunks[0].ddp_config.overlap_param_gather
        config = OptimizerConfig(
            optimizer="adam",
            lr=lr,
            weight_decay=weight_decay,
            adam_beta1=betas[0],
            adam_beta2=betas[1],
            adam_eps=eps,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=True,
            clip_grad=clip_grad,
            overlap_param_gather=overlap,
        )
        self._chunks, self._clip_grad = list(chunks), clip_grad
        self._wheel = get_megatron_optimizer(
            config, list(chunks), config_overrides={}, use_gloo_process_groups=False
        )
        self._on_host = AdamOnHost(list(self._masters()), host_fraction)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all inner optimizers."""
        groups: list[dict[str, Any]] = self._wheel.param_groups
        return groups

    @property
    def host(self) -> HostState:
        """The part of the state in host memory."""
        return self._on_host.memory

    def describe(self) -> str:
        """One line: every parameter has one rule."""
        return "optimizer: AdamW for all parameters"

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self._wheel.zero_grad()
        self._on_host.zero_grad()

    @torch.no_grad()
    def step(self) -> StepResult:
        """Clip by global norm and update; a non-finite norm skips the step on all ranks."""
        self.host.begin_step()
        self._wheel.prepare_grads()
        self._on_host.give_gradients()
        norm = float(self._wheel.get_grad_norm())
        if not math.isfinite(norm):
            return StepResult(grad_norm=norm, skipped=True)
        if self._clip_grad > 0:
            for inner in self._inner():
                clip_grad_by_total_norm_fp32(inner.get_parameters(), self._clip_grad, norm)
        self._wheel.step_with_ready_grads()
        return StepResult(grad_norm=norm, skipped=False)

    def kinds(self, key: str) -> tuple[str, ...]:
        """Master weight and both moments of every matrix."""
        return ("weight", *MOMENTS)

    def shard_states(self) -> list[ShardState]:
        """Master and moments of each shard that has elements; moments not begun are zeros."""
        self.host.settle()
        return [
            ShardState(
                parameter=flat.parameter,
                begin=flat.begin,
                tensors={"weight": shard.detach()} | {name: state[name] for name in MOMENTS},
            )
            for flat, shard, state in self._shards()
        ]

    def num_updates(self) -> int | None:
        """Steps counted by the inner optimizers.

        Transformer Engine's FusedAdam counts steps in the group, PyTorch's AdamW per shard.
        """
        counts = {int(state["step"]) for _, _, state in self._shards() if "step" in state}
        for inner in self._inner():
            groups = inner.optimizer.param_groups
            # An empty group is not counted on (distrib_optimizer.py:661).
            counts |= {int(g["step"]) for g in groups if g["params"] and "step" in g}
        assert len(counts) <= 1, f"shards have counted different numbers of steps: {counts}"
        return counts.pop() if counts else None

    @torch.no_grad()
    def loaded(self, num_updates: int) -> None:
        """Set the step counts, and round the masters into this rank's part of the buckets."""
        for flat, shard, state in self._shards():
            if "step" in state:
                # A tensor of its own for each shard: distrib_optimizer.py:821 lets shards share
                # one, which AdamW then advances once a shard.
                state["step"] = torch.full_like(state["step"], num_updates)
            flat.weights.copy_(shard)
        for inner in self._inner():
            if not counts_per_shard(inner.optimizer):
                for group in inner.optimizer.param_groups:
                    if group["params"]:
                        group["step"] = num_updates

    def _shards(self) -> Iterator[tuple[FlatShard, torch.Tensor, dict[str, Any]]]:
        """Every shard with elements: in the bucket, its master, and the state begun for it."""
        for one in self._masters():
            torch_optimizer = one.inner.optimizer
            state = torch_optimizer.state[one.master]
            if not state:
                state |= {name: torch.zeros_like(one.master.detach()) for name in MOMENTS}
                if counts_per_shard(torch_optimizer):
                    state["step"] = torch.zeros((), dtype=torch.float32)
            yield one.flat, self._on_host.master(one.master), state

    def _masters(self) -> Iterator[OwnedMaster]:
        """Every shard with elements, and what stands for it in an inner optimizer."""
        owners = {
            parameter: (inner, *place)
            for inner in self._inner()
            for parameter, place in inner.model_param_group_index_map.items()
        }
        for flat in flat_shards(self._chunks):
            if flat.begin == flat.end:
                continue
            inner, group, order = owners[flat.parameter]
            master = inner.optimizer.param_groups[group]["params"][order]
            assert master.numel() == flat.end - flat.begin
            yield OwnedMaster(flat=flat, inner=inner, group=group, master=master)

    def _inner(self) -> list[Any]:
        return [inner for inner in self._wheel.chained_optimizers if not inner.is_stub_optimizer]
